"""A stream on disk: resumed bit by bit in another process, never half written, refused by other weights."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fill
from safetensors.numpy import save_file
from tiny import MODERN
from tiny_stream import PROMPT, folders, student

from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.layout import PREFIX2
from omniforcing_jax.pipeline.pipeline import abstract_pipeline
from omniforcing_jax.pipeline.presets import TINY_STREAM
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.prompt_change.history import exact_depth
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import FORMAT, MARK, STATE, read_saved, save
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.text.contexts import TextContexts

ROOT = Path(__file__).parent.parent.parent


@cache
def unbroken():
    """The chunks of a stream that was not cut."""
    return list(open_stream(student(), PROMPT, 4, seed=3))


def same(one, other) -> bool:
    return all(
        a.index == b.index
        and (a.video_start_s, a.audio_start_s) == (b.video_start_s, b.audio_start_s)
        and np.array_equal(a.video, b.video)
        and np.array_equal(a.audio, b.audio)
        for a, b in itertools.zip_longest(one, other)
    )


def cut(folder, blocks: int):
    """Save a stream after some blocks; returns its chunks so far."""
    stream = open_stream(student(), PROMPT, 4, seed=3)
    chunks = list(itertools.islice(stream, blocks))
    save(stream, folder)
    return chunks


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_resumed_stream_is_the_unbroken_one(tmp_path, blocks):
    assert same(cut(tmp_path / "state", blocks) + list(resume(tmp_path / "state", student())), unbroken())


RESUME = """
import sys
import numpy as np
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.resume import resume
import jax
jax.config.update("jax_default_matmul_precision", "highest")
video, audio = join_chunks(list(resume(sys.argv[1], sys.argv[2])))
np.savez(sys.argv[3], video=video, audio=audio)
"""


def test_another_process_goes_on_bit_by_bit(tmp_path):
    made = cut(tmp_path / "state", 2)
    rest = tmp_path / "rest.npz"
    arguments = [tmp_path / "state", folders() / "student", rest]
    subprocess.run([sys.executable, "-c", RESUME, *map(str, arguments)], cwd=ROOT, check=True)
    for whole, begun, ended in zip(join_chunks(unbroken()), join_chunks(made), np.load(rest).values(), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate([begun, ended]))


def test_a_change_of_prompt_that_is_under_way_is_saved_too(tmp_path):
    stream = open_stream(student(), PROMPT, 4, seed=3)
    next(stream)
    stream.set_prompt("a green ball", recompute=1, fade=2)
    next(stream)
    assert stream.state.transition.left == 2
    save(stream, tmp_path / "state")
    resumed = resume(tmp_path / "state", student())
    assert resumed.state.prompt_words == ("a green ball",)
    rest = list(stream)
    assert same(list(resumed), rest)
    assert not same(rest, unbroken()[2:])


def test_saving_does_not_disturb_the_stream(tmp_path):
    stream = open_stream(student(), PROMPT, 4, seed=3)
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if chunk.index < 4:
            save(stream, tmp_path)
    assert same(chunks, unbroken())
    assert read_saved(tmp_path)[0].block == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_bfloat16_is_saved_as_it_is(tmp_path):
    stream = open_stream(folders() / "student", PROMPT, dtype=jnp.bfloat16)
    past = jax.tree.map(lambda x: x + 1, stream.state.cache.past)
    stream.state = dataclasses.replace(stream.state, cache=dataclasses.replace(stream.state.cache, past=past))
    save(stream, tmp_path)
    one, other = (jax.tree.leaves(s.state) for s in (stream, resume(tmp_path, folders() / "student")))
    assert one[0].dtype == jnp.bfloat16
    assert [getattr(x, "dtype", int) for x in one] == [getattr(x, "dtype", int) for x in other]
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True) if _is_number(a))


def _is_number(x) -> bool:
    return isinstance(x, int) or not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def miscount(stream):
    """Let the cache of a stream count a commit that the host knows nothing of."""
    cache = stream.state.cache
    cache = dataclasses.replace(cache, blocks_done=cache.blocks_done + 1)
    stream.state = dataclasses.replace(stream.state, cache=cache)


@pytest.mark.parametrize("branch_off", [lambda stream, folder: save(stream, folder), lambda stream, _: stream.fork()])
def test_a_stream_whose_host_and_device_count_other_blocks_is_neither_saved_nor_forked(tmp_path, branch_off):
    stream = open_stream(student(), PROMPT, 4, seed=3)
    next(stream)
    branch_off(stream, tmp_path)
    miscount(stream)
    with pytest.raises(ValueError, match="block=1: the cache has 2 committed blocks"):
        branch_off(stream, tmp_path)


def test_a_state_whose_tensors_are_of_another_block_than_its_json_is_refused_before_work(tmp_path, monkeypatch):
    cut(tmp_path, 3)
    values = json.loads((tmp_path / STATE).read_text())
    (tmp_path / STATE).write_text(json.dumps({**values, "block": 2}))
    monkeypatch.setattr("omniforcing_jax.pipeline.checks.load", None)
    with pytest.raises(ValueError, match="block=2: the cache has 3 committed blocks"):
        resume(tmp_path, folders() / "student")


def test_an_exact_history_is_kept_in_the_saved_request(tmp_path):
    stream = open_stream(student(), PROMPT, history="exact")
    save(stream, tmp_path)
    assert read_saved(tmp_path).request.history == "exact"
    depths = [s.state.history.depth for s in (stream, resume(tmp_path, student()))]
    assert depths == [exact_depth(stream.static)] * 2


def test_a_stream_that_ended_is_forked_without_its_last_commit():
    stream = open_stream(student(), PROMPT, 0)
    next(stream)
    assert same(list(stream.fork()), list(stream))


def test_a_stream_that_ended_is_not_saved(tmp_path):
    stream = open_stream(student(), PROMPT, 0)
    next(stream)
    with pytest.raises(ValueError, match=r"last of its 1 blocks.*seconds=None"):
        save(stream, tmp_path)


def test_so_many_seconds_more_are_counted_from_the_cut(tmp_path):
    cut(tmp_path, 2)
    assert resume(tmp_path, student(), 7).blocks == 2 + 7
    assert resume(tmp_path, student()).blocks == 5
    with pytest.raises(ValueError, match=r"seconds=1.5: must be 0 \+ 1 j"):
        resume(tmp_path, student(), 1.5)


@pytest.mark.long
def test_a_student_of_the_next_generation_is_resumed_bit_by_bit_and_only_at_its_scalar_sigma(tmp_path):
    model = dataclasses.replace(MODERN, cross_timestep=CrossTimestep.CROSS)
    sampler = dataclasses.replace(TINY_STREAM.sampler, layout=PREFIX2, pinned=2, window=2, scalar_sigma=1.0)
    config = dataclasses.replace(TINY_STREAM, model=model, sampler=sampler, words=None)
    weights = fill(abstract_pipeline(config))
    contexts = TextContexts(jnp.ones((1, 3, 64)), jnp.ones((1, 3, 32)), jnp.ones((1, 3), jnp.int32))
    whole = list(open_stream(weights, "", 5, seed=3, contexts=contexts))
    stream = open_stream(weights, "", 5, seed=3, contexts=contexts)
    begun = list(itertools.islice(stream, 3))
    save(stream, tmp_path)
    assert same(begun + list(resume(tmp_path, weights)), whole)
    video, audio = join_chunks(whole)
    assert len(audio) / whole[0].sample_rate - len(video) / 24 == pytest.approx(1 / 120)
    other = weights.replace(config=dataclasses.replace(config, sampler=dataclasses.replace(sampler, scalar_sigma=0.9)))
    with pytest.raises(ValueError, match=r"sampler.scalar_sigma=1.0, expected 0.9"):
        resume(tmp_path, other)


@pytest.fixture
def saved(tmp_path):
    save(open_stream(student(), PROMPT, seed=3), tmp_path)
    return tmp_path


def test_other_weights_of_the_same_config_are_refused(saved):
    leaves, tree = jax.tree.flatten(student())
    other = tree.unflatten([*leaves[:-1], leaves[-1].at[(0,) * leaves[-1].ndim].add(1e-6)])
    with pytest.raises(ValueError, match=rf"{saved}: the state belongs to the weights 'tiny' \(\w{{12}}\), not to"):
        resume(saved, other)


def test_weights_of_another_config_are_refused_by_the_field(saved):
    config = student().config
    model = dataclasses.replace(config.model, gate_multiplier=1.0)
    other = student().replace(config=dataclasses.replace(config, model=model))
    with pytest.raises(ValueError, match=r"transformer.gate_multiplier=1000.0, expected 1.0"):
        resume(saved, other)


def test_weights_whose_sampler_changed_are_refused_by_the_field(saved):
    config = student().config
    other = student().replace(config=dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, window=2)))
    with pytest.raises(ValueError, match=r"sampler.window=0, expected 2"):
        resume(saved, other)


def test_weights_in_another_type_are_refused(saved):
    half = student().replace(transformer=jax.tree.map(lambda x: x.astype(jnp.bfloat16), student().transformer))
    with pytest.raises(ValueError, match="belongs to float32 weights, these are bfloat16"):
        resume(saved, half)


def test_a_folder_without_a_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"state.json: No such file.*expected a folder that a stream was saved to"):
        resume(tmp_path, student())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 1}, "saved in format 1, this version reads format 7"),
        ({"width": 128}, "mis-shaped cache/past/video_self/ring/k"),
        ({"history": "all"}, "history='all': must be a number of blocks, 'exact' or None"),
        ({"dtype": "bfloat16"}, "cache/past/video_self/ring/k=dtype.*float32.*expected bfloat16"),
        ({"prompt": ["a", "b"]}, "mis-shaped"),
        ({"steps": 9}, "steps=9: must be between 1 and 2"),
        ({"window": True}, "request.window=True"),
        ({"request": {}}, "request: has the keys"),
        ({"request": None}, "request=None: must be an object"),
        ({"block": 1}, "missing picture/"),
        ({"block": "1"}, "block='1'"),
        ({"tensors": "state-0.safetensors"}, "state-0.safetensors: No such file"),
    ],
)
def test_a_state_that_contradicts_itself_is_refused_before_work(saved, monkeypatch, change, named):
    values = json.loads((saved / STATE).read_text())
    inside = {name: value for name, value in change.items() if name in values["request"]}
    request = {"request": {**values["request"], **inside}} if inside else change
    (saved / STATE).write_text(json.dumps({**values, **request}))
    monkeypatch.setattr("omniforcing_jax.pipeline.checks.load", None)
    with pytest.raises(ValueError, match=named) as error:
        resume(saved, folders() / "student")
    assert len(str(error.value).splitlines()) == 1


KILLED = """
import dataclasses, json, os, signal, sys
from pathlib import Path
import numpy as np
import omniforcing_jax.stream.saved as saved
from omniforcing_jax.io.tensor_file import open_tensors

folder = Path(sys.argv[1])
values = json.loads((folder / saved.STATE).read_text())
old = values["tensors"]
tensors = {name: np.full((3, 5), 2.0, np.float32) for name in "abcdef"}
saved._storable = lambda state: state


def die_at(call):
    # Ends this process at its n-th dealing with the folder, or at the n-th tensor that is written.
    def count(*ignored):
        global calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event, arguments):
        if event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
            count()

    sys.addaudithook(watch)
    to_bytes = np.ascontiguousarray
    np.ascontiguousarray = lambda x: (count(), to_bytes(x))[1]


calls = 0
for call in range(1, 100):
    child = os.fork()
    if not child:
        die_at(call)
        saved.write_state(folder, tensors, {**values, "tensors": saved.TENSORS.format(call), "block": call})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    now = json.loads((folder / saved.STATE).read_text())
    file = open_tensors(folder / now["tensors"])
    print(call, os.WTERMSIG(status), now["block"], float(file.read("a").sum()), len(list(folder.iterdir())))
    if not status:
        break
"""


def test_a_process_killed_at_any_point_of_saving_leaves_a_state_that_loads(tmp_path):
    """The old state until the new one is whole; the run that is not killed has removed every stray file."""
    old = {"format": FORMAT, "tensors": "state-0.safetensors", "block": 0}
    (tmp_path / STATE).write_text(json.dumps(old))
    save_file({"a": np.ones((3, 5), np.float32)}, tmp_path / old["tensors"], MARK)
    program = [sys.executable, "-c", KILLED, str(tmp_path)]
    output = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = [tuple(float(word) for word in line.split()) for line in output.splitlines()]
    *killed, (last, status, block, _, files) = rows
    assert (status, block, files) == (0, last, 2)
    assert len(killed) >= 10
    assert all(row[1] == signal.SIGKILL for row in killed)
    found = [(row[2], row[3]) for row in killed]
    assert (0.0, 15.0) in found
    assert all(state == (0.0, 15.0) or (state[0] > 0 and state[1] == 30.0) for state in found)
