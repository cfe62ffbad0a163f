"""The commands: every bad request is one line on stderr and exit code 2, before any work; good ones make a file."""

import json
import shutil
import signal

import av
import numpy as np
import pytest
from refusal import refusal
from safetensors.numpy import load_file, save_file
from tiny_stream import PROMPT, folders, student

from omniforcing_jax.cli.main import main
from omniforcing_jax.io import machine
from omniforcing_jax.stream.mp4 import Mp4Writer
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import read_saved, save
from omniforcing_jax.stream.start import open_stream


def stream(tmp_path, *more, weights=None, prompt=PROMPT, seconds=2, out=None):
    out, weights = out or tmp_path / "a.mp4", weights or folders() / "student"
    return ["stream", "--prompt", prompt, "--seconds", seconds, "--out", out, "--weights", weights, *more]


def sample(tmp_path, *more, weights=None, prompt=PROMPT, seconds=1):
    weights = weights or folders() / "teacher"
    return [
        "sample",
        "--prompt",
        prompt,
        "--seconds",
        seconds,
        "--out",
        tmp_path / "a.mp4",
        "--weights",
        weights,
        *more,
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["strem"], ["unknown command strem", "did you mean stream?"]),
        (["stream", "--promt", "a ball"], ["unknown flag --promt", "did you mean --prompt?"]),
        (["sample", "--guidence", "3"], ["unknown flag --guidence", "did you mean --guidance?"]),
        (["stream", "--prompt", "a ball"], ["--seconds", "--out"]),
        (["stream", "--prompt", "a ball", "--seconds", "two", "--out", "a.mp4"], ["--seconds", "two"]),
        (["bench", "strem", "--blocks", "3", "--json", "a.json"], ["strem"]),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused(capsys, arguments, named):
    line = refusal(capsys, arguments)
    assert all(name in line for name in named), line


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"seconds": 2.5}, ["seconds=2.5", "2 and 3"]),
        ({"seconds": -1}, ["seconds=-1", "0"]),
        ({"prompt": "a rad ball"}, ["'rad'", "did you mean red"]),
        ({"weights": "nowhere"}, ["nowhere", "no such weights folder"]),
        ({"out": "/dev/null/a.mp4"}, ["/dev/null/a.mp4", "cannot write", "not a directory"]),
    ],
)
def test_a_stream_that_cannot_be_is_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, stream(tmp_path, **more))
    assert all(name in line for name in named), line


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--height", 65], ["height=65", "multiple of 32"]),
        (["--width", -32], ["width=-32", "multiple of 32"]),
        (["--window", 9], ["window=9", "4 blocks"]),
        (["--steps", 3], ["steps=3", "between 1 and 2"]),
        (["--contexts", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--mesh", "1,1"], ["--mesh 1,1:", "replica,fsdp,tensor"]),
        (["--mesh", "1,0,8"], ["fsdp=0", "at least 1"]),
        (["--mesh", "1,1,2"], ["--mesh 1,1,2:", "needs 2 devices", "there are 8"]),
        (["--mesh", "1,1,8"], ["--mesh 1,1,8:", "tensor=8 does not divide video's heads, 4"]),
    ],
)
def test_a_flag_that_does_not_fit_the_weights_is_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, stream(tmp_path, *more))
    assert all(name in line for name in named), line


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--steps", 0], ["steps=0"]),
        (["--guidance", "much"], ["guidance", "much"]),
        (["--guidance", "stg=1", "layers=7"], ["layers=7", "below 2"]),
        (["--height", 65], ["height=65"]),
    ],
)
def test_a_sample_that_cannot_be_is_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, sample(tmp_path, *more))
    assert all(name in line for name in named), line


def test_a_teacher_is_not_streamed_and_the_right_command_is_named(capsys, tmp_path, no_work):
    assert "`sample`" in refusal(capsys, stream(tmp_path, weights=folders() / "teacher"))


def test_a_student_is_not_sampled_and_the_right_command_is_named(capsys, tmp_path, no_work):
    assert "`stream`" in refusal(capsys, sample(tmp_path, weights=folders() / "student"))


def test_more_memory_than_is_free_is_refused_with_the_figures(capsys, tmp_path, no_work, monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda: 3 * 2**20)
    line = refusal(capsys, stream(tmp_path))
    assert all(part in line for part in ("3.0 MiB are free", "weights 3.9 MiB", "cache", "decoder"))


def broken(tmp_path, component, change):
    """Copy the student and change the tensors of one component."""
    folder = tmp_path / "broken"
    shutil.copytree(folders() / "student", folder)
    file = folder / component / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    ("component", "change", "named"),
    [
        ("text", lambda t: t.pop("words"), ["missing words"]),
        ("vocoder", lambda t: t.update(extra=np.zeros(2, np.float32)), ["unknown extra"]),
        ("transformer", lambda t: t.update(sinks=t["sinks"][:, :1]), ["mis-shaped sinks", "(1, 1, 32)", "(1, 2, 32)"]),
    ],
)
def test_weights_that_are_missing_unknown_or_mis_shaped_are_named(capsys, tmp_path, component, change, named):
    line = refusal(capsys, stream(tmp_path, weights=broken(tmp_path, component, change)))
    assert all(name in line for name in [f"{component}/model.safetensors", *named]), line


def edited(tmp_path, component, **values):
    folder = tmp_path / "edited"
    shutil.copytree(folders() / "student", folder)
    file = folder / component / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("component", "values", "named"),
    [
        ("transformer", {"sinks": 3}, ["mis-shaped sinks"]),
        ("transformer", {"depth": 3}, ["depth"]),
        ("transformer", {"spatial_compression": 16}, ["transformer.spatial_compression=16", "video_vae has 32"]),
        ("", {"resolution": [64, 65]}, ["width=65"]),
        ("", {"format": 2}, ["format=2"]),
        ("", {"components": {"ears": "."}}, ["ears"]),
    ],
)
def test_a_config_that_contradicts_weights_or_another_config_is_refused(capsys, tmp_path, component, values, named):
    line = refusal(capsys, stream(tmp_path, weights=edited(tmp_path, component, **values)))
    assert all(name in line for name in named), line


def test_contexts_of_another_width_are_refused(capsys, tmp_path, no_work):
    file = tmp_path / "contexts.safetensors"
    save_file({name: np.zeros((1, 4, 7), np.float32) for name in ("video", "audio")}, file)
    assert "must be [1, tokens, 24]" in refusal(capsys, stream(tmp_path, "--contexts", file))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--blocks", "2"], ["blocks=2"]),
        (["--blocks", "9", "--preset", "tyni", "--random-weights"], ["tyni", "tiny"]),
        (["--blocks", "9", "--preset", "tiny"], ["--random-weights"]),
        (["--blocks", "9", "--preset", "tiny-teacher", "--random-weights"], ["`sample`"]),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, ["bench", "stream", "--json", tmp_path / "a.json", *more])
    assert all(name in line for name in named), line


def lengths(path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(stream.duration * stream.time_base) for stream in file.streams]


def test_stream_writes_a_file_and_says_how_fast_it_was(capsys, tmp_path):
    assert main([str(argument) for argument in stream(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(words in said for words in ("49 frames", "first chunk", "frames/s", "x real time"))
    video, audio = lengths(tmp_path / "a.mp4")
    assert video == pytest.approx(49 / 24, abs=1e-3)
    assert abs(video - audio) <= 0.05


def test_missing_parents_of_outputs_are_made(tmp_path):
    out, state = tmp_path / "a" / "b" / "c.mp4", tmp_path / "d" / "state"
    assert main([str(argument) for argument in stream(tmp_path, "--save-state", state, out=out)]) == 0
    assert lengths(out)[0] == pytest.approx(49 / 24, abs=1e-3)
    assert read_saved(state)


def test_a_refused_request_leaves_nothing_behind(capsys, tmp_path):
    out, state = tmp_path / "a" / "b" / "c.mp4", tmp_path / "d" / "state"
    refusal(capsys, stream(tmp_path, "--save-state", state, out=out, prompt="a rad ball"))
    refusal(capsys, ["bench", "stream", "--json", tmp_path / "e" / "a.json"])
    refusal(capsys, ["judge", "nowhere.mp4", "--json", tmp_path / "f" / "a.json"])
    assert list(tmp_path.iterdir()) == []


def test_results_go_to_stdout_and_progress_to_stderr(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("omniforcing_jax.io.progress.LINE_EVERY_S", 0.0)
    assert main([str(argument) for argument in stream(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "streaming: 3/3 blocks" in captured.err
    assert main([str(argument) for argument in sample(tmp_path, "--steps", 2)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "sampling: 2/2 steps, decoding" in captured.err


def test_weights_that_ship_are_given_by_name(tmp_path, capsys, no_work):
    arguments = ["stream", "--prompt", "a rad ball", "--seconds", 1, "--out", tmp_path / "a.mp4"]
    for more in ([], ["--weights", "chime"]):
        assert "did you mean red" in refusal(capsys, [*arguments, *more])
    assert "`sample`" in refusal(capsys, [*arguments, "--weights", "chime-teacher"])


@pytest.mark.long
def test_a_stream_on_a_mesh_hands_out_the_chunks_of_one_device(monkeypatch, tmp_path):
    chunks, write = [], Mp4Writer.write
    monkeypatch.setattr(Mp4Writer, "write", lambda writer, chunk: (chunks.append(chunk), write(writer, chunk)))
    assert main([str(argument) for argument in stream(tmp_path, "--mesh", "1,2,4", seconds=1)]) == 0
    for chunk, alone in zip(chunks, open_stream(student(), PROMPT, 1), strict=True):
        assert (chunk.index, chunk.audio_start_s) == (alone.index, alone.audio_start_s)
        assert np.abs(chunk.video.astype(int) - alone.video).max(initial=0) <= 1  # on the edge of two bytes
        np.testing.assert_allclose(chunk.audio, alone.audio, atol=1e-4)


def test_a_saved_stream_goes_on_in_another_file_at_its_own_time(capsys, tmp_path):
    state, more = tmp_path / "state", tmp_path / "b.mp4"
    assert main([str(a) for a in stream(tmp_path, "--save-state", state)]) == 0
    assert f"go on with --resume {state}" in capsys.readouterr().err
    assert lengths(tmp_path / "a.mp4")[0] == pytest.approx(49 / 24, abs=1e-3)
    rest = ["--seconds", 1, "--out", more, "--weights", folders() / "student", "--resume", state]
    assert main([str(a) for a in ["stream", *rest, "--save-state", state]]) == 0
    assert "24 frames" in capsys.readouterr().out
    with av.open(str(more)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert len(times) == 24
    assert times[0] == pytest.approx(49 / 24, abs=2e-3)  # the container counts time in milliseconds
    assert read_saved(state)[0].block == 4


@pytest.fixture
def saved_state(tmp_path):
    """A stream that was saved before its first block."""
    save(open_stream(student(), PROMPT), tmp_path / "state")
    return tmp_path / "state"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--prompt", "a green ball"], ["prompt='a green ball'", "leave --prompt out"]),
        (["--seed", 4], ["seed=4", "leave --seed out"]),
        (["--dtype", "bfloat16"], ["dtype='bfloat16'"]),
        (["--seconds", 1.5], ["seconds=1.5"]),
        (["--weights", folders() / "teacher"], ["`sample`"]),
        (["--resume", "nowhere"], ["nowhere/state.json", "No such file"]),
        (["--mesh", "1,1,8"], ["tensor=8 does not divide video's heads, 4"]),
        (["--save-state", "/dev/null/state"], ["cannot write /dev/null/state"]),
    ],
)
def test_a_saved_stream_that_cannot_go_on_so_is_refused(capsys, tmp_path, saved_state, no_work, more, named):
    rest = ["--seconds", 1, "--out", tmp_path / "b.mp4", "--weights", folders() / "student"]
    line = refusal(capsys, ["stream", *rest, "--resume", saved_state, *more])
    assert all(name in line for name in named), line


def test_a_batch_is_not_written_to_one_file(capsys, tmp_path):
    save(open_stream(student(), [PROMPT]), tmp_path / "state")
    rest = ["--seconds", 1, "--out", tmp_path / "b.mp4", "--weights", folders() / "student"]
    assert "holds a batch of 1" in refusal(capsys, ["stream", *rest, "--resume", tmp_path / "state"])


def test_a_stream_without_prompt_is_refused(capsys, tmp_path, no_work):
    rest = ["--seconds", 1, "--out", tmp_path / "b.mp4", "--weights", folders() / "student"]
    assert all(flag in refusal(capsys, ["stream", *rest]) for flag in ("--prompt", "--resume"))


def test_ctrl_c_ends_a_stream_after_a_whole_block_and_saves_it(monkeypatch, tmp_path):
    state = tmp_path / "state"
    write, written = Mp4Writer.write, []

    def interrupted(writer, chunk):
        written.append(chunk.index)
        if chunk.index == 1:
            signal.raise_signal(signal.SIGINT)
        write(writer, chunk)

    monkeypatch.setattr(Mp4Writer, "write", interrupted)
    assert main([str(a) for a in stream(tmp_path, "--save-state", state, seconds=3600)]) == 130
    saved = read_saved(state).header
    assert saved.block in (2, 3)  # the writer works while the next block is made
    assert written == list(range(saved.block + 1))  # the last one is the tail of the sound
    rest = resume(state, student())
    assert next(rest).index == saved.block


class _InterruptedInDestructor:
    """Python loses what is raised in a destructor, an interrupt too."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_destructor_ends_a_stream_after_the_block_under_way(monkeypatch, tmp_path):
    write, written = Mp4Writer.write, []

    def interrupted(writer, chunk):
        written.append(chunk.index)
        write(writer, chunk)

    def made(chunks):
        for chunk in chunks:
            if chunk.index == 1:
                _InterruptedInDestructor()
            yield chunk

    monkeypatch.setattr(Mp4Writer, "write", interrupted)
    monkeypatch.setattr(machine, "trimmed", made)
    assert main([str(a) for a in stream(tmp_path, seconds=5)]) == 130
    assert written == [0, 1]
    assert lengths(tmp_path / "a.mp4")


def test_a_stream_reads_contexts_from_a_file(tmp_path):
    file, rng = tmp_path / "contexts.safetensors", np.random.default_rng(0)
    features = {name: rng.normal(size=(1, 16, 24)).astype(np.float32) for name in ("video", "audio")}
    save_file({**features, "mask": np.ones((1, 16), np.int32)}, file)
    assert main([str(argument) for argument in stream(tmp_path, "--contexts", file, prompt="no word is read")]) == 0


def test_sample_writes_a_file(capsys, tmp_path):
    assert main([str(argument) for argument in sample(tmp_path, "--steps", 2)]) == 0
    assert "25 frames" in capsys.readouterr().out
    video, audio = lengths(tmp_path / "a.mp4")
    assert abs(video - audio) <= 0.05
