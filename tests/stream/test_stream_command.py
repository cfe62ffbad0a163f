"""The command `stream` with schedules and conditioning: refusals before any work, and the written file."""

from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from refusal import refusal
from tiny_stream import PROMPT, folders

from omniforcing_jax.cli.main import main
from omniforcing_jax.stream.conditioning.condition import continue_file
from omniforcing_jax.stream.conditioning.media import read_frames, read_sound
from omniforcing_jax.stream.mp4 import write_mp4


def command(tmp_path, *more, seconds=3):
    flags = ["--prompt", PROMPT, "--seconds", seconds, "--out", tmp_path / "a.mp4", "--weights", folders() / "student"]
    return [str(argument) for argument in ["stream", *flags, *more]]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--prompt-at", 3, "a ball"], ["prompt-at=3.0", "before the end of the stream at 3 s"]),
        (["--prompt-at", 0, "a ball"], ["prompt-at=0.0", "above 0 s"]),
        (["--prompt-at", 2, "a ball", "--prompt-at", 1, "a ball"], ["prompt-at=1.0", "after the prompt at 2 s"]),
        (["--prompt-at", 2, "a bell"], ["'bell'", "did you mean"]),
        (["--prompt-at", "soon", "a ball"], ["--prompt-at", "soon"]),
        (["--prompt-at", 2, "a ball", "--recompute", -1], ["recompute=-1"]),
        (["--prompt-at", 2, "a ball", "--fade", -1], ["fade=-1"]),
    ],
)
def test_prompts_that_cannot_be_are_refused(capsys, tmp_path, no_work, more, named):
    line = refusal(capsys, command(tmp_path, *more))
    assert all(name in line for name in named), line


def test_prompts_change_at_their_seconds_and_what_it_cost_is_said(capsys, caplog, tmp_path):
    more = ["--prompt-at", 0.5, "a green ball", "--prompt-at", 2, "a blue ball", "--recompute", 2]
    assert main(command(tmp_path, *more)) == 0
    assert "73 frames" in capsys.readouterr().out
    rounded, first, second = caplog.messages
    assert "0.5 s is no block border; the prompt changes at 1 s" in rounded
    assert "block 2: new prompt; 2 past blocks recomputed in" in first
    assert "block 3: new prompt; 2 past blocks recomputed in" in second
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 73


@cache
def media() -> Path:
    """A folder of files that fit a tiny stream, or do not."""
    folder = folders() / "media"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (3 * 24_000 + 240, 2)).astype(np.float32)
    for name, seconds, size, rate in (
        ("clip", 2, (64, 96), 24),
        ("fast", 2, (64, 96), 30),
        ("wide", 2, (64, 128), 24),
    ):
        frames = np.broadcast_to(rng.integers(0, 256, (1, 1, 1, 3), np.uint8), (1 + 24 * seconds, *size, 3))
        samples = noise[: seconds * 24_000 + 240]
        write_mp4(folder / f"{name}.mp4", frames, samples, frame_rate=rate, sample_rate=24_000)
    write_mp4(
        folder / "odd.mp4", np.zeros((30, 64, 96, 3), np.uint8), noise[:30_000], frame_rate=24, sample_rate=24_000
    )
    for name, size in (("image", (64, 96)), ("small", (32, 96))):
        picture = av.VideoFrame.from_ndarray(rng.integers(0, 256, (*size, 3), np.uint8), format="rgb24")
        with av.open(str(folder / f"{name}.png"), "w", format="image2") as file:
            stream = file.add_stream("png", rate=1, height=size[0], width=size[1])
            stream.pix_fmt = "rgb24"
            file.mux(stream.encode(picture))
            file.mux(stream.encode(None))
    for name, layout, channels, rate in (
        ("mono", "mono", 1, 8000),
        ("long", "stereo", 2, 16_000),
        ("six", "5.1", 6, 8000),
    ):
        with av.open(str(folder / f"{name}.wav"), "w") as file:
            stream = file.add_stream("pcm_s16le", rate=rate, layout=layout)
            ramp = np.arange(3 * rate * channels, dtype=np.int16)[None] % 1000
            frame = av.AudioFrame.from_ndarray(ramp, format="s16", layout=layout)
            frame.sample_rate = rate
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    (folder / "broken.mp4").write_bytes(b"no film at all")
    return folder


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--sound", "nowhere.wav"], ["cannot read", "nowhere.wav"]),
        (["--sound", "broken.mp4"], ["cannot read", "broken.mp4"]),
        (["--sound", "image.png"], ["image.png", "has no sound"]),
        (["--sound", "clip.mp4"], ["clip.mp4", "2.0", "shorter than the stream of 3 s"]),
        (["--picture", "long.wav"], ["long.wav", "has no picture"]),
        (["--picture", "clip.mp4"], ["clip.mp4", "49 frames", "73"]),
        (["--picture", "fast.mp4"], ["fast.mp4", "39 frames", "73"]),
        (["--sound", "long.wav", "--picture", "clip.mp4"], ["nothing would be left to make"]),
        (["--from-image", "small.png"], ["small.png", "96x32", "96x64"]),
        (["--continue", "wide.mp4"], ["wide.mp4", "128x64", "96x64"]),
        (["--continue", "fast.mp4"], ["fast.mp4", "39 frames", "25 and 49"]),
        (["--continue", "odd.mp4"], ["odd.mp4", "30 frames", "25 and 49"]),
        (["--continue", "clip.mp4", "--from-image", "image.png"], ["from-image", "--continue"]),
        (["--drop-past"], ["drop-past", "--continue"]),
        (["--contineu", "clip.mp4"], ["unknown flag --contineu", "did you mean --continue?"]),
    ],
)
def test_files_that_do_not_fit_are_refused(capsys, tmp_path, no_work, more, named):
    more = [str(media() / word) if "." in word else word for word in more]
    line = refusal(capsys, command(tmp_path, *more))
    assert all(name in line for name in named), line


def test_a_start_as_long_as_the_stream_is_refused(capsys, tmp_path, no_work):
    line = refusal(capsys, command(tmp_path, "--continue", media() / "clip.mp4", seconds=2))
    assert "seconds=2: must be longer than the 2 s" in line


def written(tmp_path, *more) -> tuple[np.ndarray, np.ndarray]:
    """Run a stream of three seconds; returns the frames and the sound of its file."""
    assert main(command(tmp_path, *more)) == 0
    path = tmp_path / "a.mp4"
    with av.open(str(path)) as file:
        count = sum(1 for _ in file.decode(video=0))
    (frames,) = read_frames(path, iter([count]))
    return frames, read_sound(path, 24_000, 2)


def test_a_file_is_continued_with_its_past_or_without_it(tmp_path):
    past = ["--continue", media() / "clip.mp4"]
    whole, new = (written(tmp_path, *past, *more) for more in ([], ["--drop-past"]))
    assert [len(frames) for frames, _ in (whole, new)] == [73, 24]
    difference = np.abs(whole[0][49:].astype(int) - new[0])
    assert difference.mean() < 8  # two encodings of the same pictures
    assert abs(len(new[1]) / 24_000 - 1) < 0.1
    assert abs(len(whole[1]) / 24_000 - 73 / 24) < 0.1


def test_a_soundtrack_a_picture_and_an_image_are_taken_from_files(tmp_path):
    assert len(written(tmp_path, "--sound", media() / "long.wav", "--from-image", media() / "image.png")[0]) == 73
    assert main(command(tmp_path, "--picture", media() / "clip.mp4", seconds=2)) == 0


def test_a_file_without_sound_is_continued_by_its_picture_alone():
    assert continue_file(media() / "image.png").sound is None
    assert continue_file(media() / "clip.mp4").sound is not None


def test_sound_is_read_at_the_rate_and_the_channels_that_are_asked_for():
    wave = read_sound(media() / "mono.wav", 16_000, 2)
    assert wave.shape == (48_000, 2)
    np.testing.assert_array_equal(wave[:, 0], wave[:, 1])
    expected = (np.arange(24_000) % 1000)[100:900] / 32768
    np.testing.assert_allclose(wave[::2, 0][100:900], expected, atol=2e-3)


def test_a_picture_that_ends_early_is_named():
    with pytest.raises(ValueError, match=r"clip.mp4: the picture ends 1 frames early"):
        list(read_frames(media() / "clip.mp4", iter([25, 25])))
