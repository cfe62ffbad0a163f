"""LoRAs at run time: equal to fused ones, switched between blocks without compilation, saved by name."""

import dataclasses
import itertools

import numpy as np
import pytest
from lora_files import fuse_pipeline, write_lora
from refusal import refusal
from tiny_stream import PROMPT, folders, listed, student, teacher

from omniforcing_jax.cli.main import main
from omniforcing_jax.io import weights
from omniforcing_jax.io.machine import CompileCounter
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.model.transformer import list_layers
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.rollout import denoise_block
from omniforcing_jax.sample.clip import sample_clip
from omniforcing_jax.serve.messages import StreamRequestBody
from omniforcing_jax.serve.network import NetworkStudio
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream

CONFIG = student().config.model


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Three LoRA files with the same matrices and ranks. Tests have two at once, so that they share their programs."""
    folder = tmp_path_factory.mktemp("loras")
    return [write_lora(folder / f"{seed}.safetensors", CONFIG, seed=seed) for seed in (1, 2, 3)]


def trace_latents(found):
    """A trace that keeps the latents of every block."""

    def trace(step, block, outputs):
        if step == "denoise":
            found.append([np.asarray(x) for x in outputs])

    return trace


def latents_of(pipeline, blocks=4, change=lambda stream, block: None, **options):
    """Make some blocks; returns their latents."""
    found = []
    stream = open_stream(pipeline, PROMPT, seed=3, trace=trace_latents(found), **options)
    for block in range(blocks):
        change(stream, block)
        next(stream)
    return found


def compare(ours, theirs, atol=2e-4):
    for one, other in zip(ours, theirs, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize("pipeline", [student, pytest.param(listed, marks=pytest.mark.long)], ids=["stacked", "list"])
def test_beside_the_weights_they_make_the_stream_of_fused_ones(loras, pipeline):
    given = [(loras[0], 0.8), (loras[1], -0.5)]
    fused = fuse_pipeline(student(), *given)
    if pipeline is listed:
        fused = dataclasses.replace(fused, transformer=list_layers(fused.transformer))
    ours, plain = latents_of(pipeline(), loras=given), latents_of(pipeline())
    compare(ours, latents_of(fused))
    assert max(np.abs(a - b).max() for a, b in zip(ours[-1], plain[-1], strict=True)) > 0.1


@pytest.mark.long
def test_a_change_between_blocks_goes_on_from_the_past_as_fused_weights_would(loras):
    changed = [(loras[0], 0.8), (loras[1], 0.3)]

    def ours(stream, block):
        if block == 2:
            stream.set_loras(changed, recompute=1)

    def theirs(stream, block):
        if block == 2:
            stream.pipeline = fuse_pipeline(student(), *changed)
            stream.__dict__.pop("network")
            stream.set_prompt(PROMPT, recompute=1)

    off = [(file, 0.0) for file, _ in changed]
    compare(latents_of(student(), change=ours, loras=off), latents_of(student(), change=theirs))


def test_other_strengths_and_other_files_of_the_same_ranks_compile_nothing(loras):
    stream = open_stream(student(), PROMPT, loras=[(loras[0], 1.0), (loras[1], 0.5)])
    stream.rehearse_change(1)
    for _ in range(3):
        next(stream)
    counter = CompileCounter.start()
    for strength, second in ((0.25, loras[1]), (0.0, loras[1]), (1.0, loras[2])):
        stream.set_loras([(loras[0], strength), (second, 0.7)], recompute=1)
        next(stream)
    assert counter.ready == 0


def test_a_change_of_prompt_that_is_under_way_goes_on(loras):
    stream = open_stream(student(), PROMPT, loras=[(loras[0], 1.0)])
    next(stream)
    stream.set_prompt("a blue ball", recompute=2, fade=2)
    stream.set_loras([(loras[0], 0.5)], recompute=0)
    assert (stream.state.transition.left, stream.state.transition.recompute) == (3, 2)
    next(stream)
    stream.set_loras([(loras[0], 0.25)], recompute=1)
    assert (stream.state.transition.left, stream.state.transition.recompute) == (2, 2)


def test_weights_are_hashed_once_whatever_their_loras(loras, tmp_path, monkeypatch):
    pipeline, hashed, take = dataclasses.replace(student()), [], weights.fingerprint
    monkeypatch.setattr(weights, "fingerprint", lambda tree: hashed.append(1) or take(tree))
    stream = open_stream(pipeline, PROMPT, loras=[(loras[0], 1.0)])
    next(stream)
    save(stream, tmp_path / "one")
    stream.set_loras([(loras[0], 0.5)])
    save(stream, tmp_path / "two")
    stream.set_loras(())
    save(stream, tmp_path / "three")
    assert len(hashed) == 1


def test_a_stream_whose_loras_were_taken_away_is_one_that_never_had_any(loras):
    def change(stream, block):
        if block == 0:
            stream.set_loras(())

    before = denoise_block._cache_size()
    plain = latents_of(student())
    counts = denoise_block._cache_size()
    assert counts - before in (0, 2)
    for one, other in zip(
        latents_of(student(), change=change, loras=[(loras[0], 1), (loras[1], 1)]), plain, strict=True
    ):
        assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
    assert denoise_block._cache_size() == counts


def test_a_saved_stream_names_its_loras_and_goes_on_with_them_bit_by_bit(loras, tmp_path):
    moved = tmp_path / "lora.safetensors"
    moved.write_bytes(loras[0].read_bytes())
    stream = open_stream(student(), PROMPT, 4, seed=3, loras=[(moved, 1.0), (loras[1], 0.5)])
    next(stream)
    stream.set_loras([(moved, 0.6), (loras[1], 0.5)])
    next(stream)
    save(stream, tmp_path / "state")
    resumed = resume(tmp_path / "state", student())
    assert resumed.plan.request.loras == ((str(moved), 0.6), (str(loras[1]), 0.5))
    rest = list(stream)
    for one, other in zip(resumed, rest, strict=True):
        assert np.array_equal(one.video, other.video)
        assert np.array_equal(one.audio, other.audio)
    moved.unlink()
    with pytest.raises(ValueError, match=r"lora='.*lora.safetensors': is not there; say with --lora where it is"):
        resume(tmp_path / "state", student())
    with pytest.raises(ValueError, match=r"is another file than the one that the stream was made with"):
        resume(tmp_path / "state", student(), loras=[(loras[2], 0.6), (loras[1], 0.5)])
    with pytest.raises(ValueError, match=r"saved with 2 LoRAs; give the same files"):
        resume(tmp_path / "state", student(), loras=())
    again = list(resume(tmp_path / "state", student(), loras=[(loras[0], 0.6), (loras[1], 0.5)]))
    other = [(loras[0], 0.1), (loras[1], 0.5)]
    changed = resume(tmp_path / "state", student(), loras=[(loras[0], 0.6), (loras[1], 0.5)])
    changed.set_loras(other, recompute=0)
    goes_on = next(resume(tmp_path / "state", student(), loras=other))
    np.testing.assert_array_equal(goes_on.video, next(changed).video)  # text keys, too, are of the new strengths
    assert not np.array_equal(goes_on.video, again[0].video)
    assert all(np.array_equal(one.video, other.video) for one, other in zip(again, rest, strict=True))


@pytest.mark.long
def test_a_teacher_samples_with_loras_as_with_fused_ones(loras):
    given = [(loras[0], 0.8)]
    (ours,) = sample_clip(teacher(), [PROMPT], 1, steps=2, guidance=2.0, loras=given)
    (theirs,) = sample_clip(fuse_pipeline(teacher(), *given), [PROMPT], 1, steps=2, guidance=2.0)
    (plain,) = sample_clip(teacher(), [PROMPT], 1, steps=2, guidance=2.0)
    assert np.abs(ours.video.astype(int) - theirs.video).max() <= 1
    assert np.abs(ours.video.astype(int) - plain.video).max() > 8
    np.testing.assert_allclose(ours.audio, theirs.audio, atol=1e-4)


def test_all_streams_of_a_server_share_its_loras_and_go_on_with_them(loras, tmp_path, monkeypatch):
    monkeypatch.setattr(NetworkStudio, "_rehearse", lambda *rest: 0.0)
    given = [(loras[0], 1.0), (loras[1], 0.5)]
    studio = NetworkStudio(str(folders() / "student"), "float32", Startup("serve"), MeshConfig(), loras=given)
    studio.warm(lambda stage: None)
    one, other = (studio.open(StreamRequestBody(prompt=PROMPT, seed=3), None, lambda stage: None) for _ in "ab")
    expected = open_stream(student(), PROMPT, seed=3, loras=given)
    np.testing.assert_array_equal(one.make().video, next(expected).video)
    shared = [source._stream.pipeline.transformer.video.patchify.w.down for source in (one, other)]
    assert shared[0] is shared[1]
    one.save(tmp_path)
    opened = studio.reopen(tmp_path)
    assert opened._stream.pipeline.transformer.video.patchify.w.down is shared[0]
    np.testing.assert_array_equal(opened.make().video, next(expected).video)


def command(tmp_path, *more):
    flags = ["--prompt", PROMPT, "--seconds", 2, "--out", tmp_path / "a.mp4", "--weights", folders() / "student"]
    return [str(argument) for argument in ["stream", *flags, *more]]


def test_the_command_changes_strengths_at_its_seconds(loras, tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr("omniforcing_jax.stream.mp4.Mp4Writer.write", lambda writer, chunk: made.append(chunk))
    given = ["--lora", loras[0], 1, "--lora-at", 1, loras[0], 0.25, "--lora-at", 1, loras[1], 0.5]
    assert main(command(tmp_path, *given, "--recompute", 1)) == 0
    stream = open_stream(student(), PROMPT, 2, loras=[(loras[0], 1), (loras[1], 0)])
    expected = list(itertools.islice(stream, 2))
    stream.set_loras([(loras[0], 0.25), (loras[1], 0.5)], recompute=1)
    np.testing.assert_array_equal(join_chunks(made)[0], join_chunks([*expected, *stream])[0])


@pytest.mark.long
def test_a_resumed_command_reads_all_files_before_its_first_block(loras, tmp_path, capsys):
    state = tmp_path / "state"
    assert main(command(tmp_path, "--lora", loras[0], 1, "--save-state", state)) == 0
    capsys.readouterr()
    later = ["stream", "--resume", state, "--weights", folders() / "student", "--seconds", 2, "--out"]
    words = [str(each) for each in (*later, tmp_path / "b.mp4", "--lora-at", 3, tmp_path / "none.safetensors", 1)]
    assert main(words) == 2
    assert "none.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "b.mp4").exists()
    words[-2] = str(loras[1])
    assert main(words) == 0
    assert (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--lora", "none.safetensors", 1], ["none.safetensors"]),
        (["--lora", "{0}", "nan"], ["strength=nan", "finite"]),
        (["--lora", "{0}", 1, "--lora", "{0}", 1], ["is given twice"]),
        (["--lora-at", 5, "{0}", 1], ["lora-at=5.0", "before the end of the stream at 2 s"]),
    ],
)
def test_loras_that_cannot_be_are_refused(loras, capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, command(tmp_path, *[str(each).format(*loras) for each in more]))
    assert all(name in line for name in named), line
