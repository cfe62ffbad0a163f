"""The evaluate command: figures on truth, the swapped control, files, generated sources, and bad input."""

import json
import sys

import numpy as np
import pytest
import tyro
from test_chime_metrics import KEYS as JUDGED

from experiments.chime import evaluate
from experiments.chime.judge import sources
from omniforcing_jax.chime import physics, render
from omniforcing_jax.chime.contact_sheet import write_contact_sheet
from omniforcing_jax.chime.figures import FIGURES
from omniforcing_jax.chime.film import Film, read_film
from omniforcing_jax.chime.metrics import perceive
from omniforcing_jax.chime.prompts import sample_prompts
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.mp4 import Mp4Writer

KEYS = {*JUDGED, *FIGURES, "rise"}


def _evaluate(tmp_path, *flags):
    out = tmp_path / "figures.json"
    evaluate.main(tyro.cli(evaluate.Arguments, args=[*map(str, flags), "--json", str(out)]))
    return json.loads(out.read_text())


def _chunks(scene, seconds, lag=0.0):
    """Cut a rendered world into chunks of one second, the sound late by `lag` seconds as a vocoder makes it."""
    frames = seconds * 24 + 1
    video, sound = render.render_video(scene, frames), render.render_audio(scene, frames * 1000)
    skipped = round(lag * 24_000)
    for index in range(seconds + 1):
        audio = sound[skipped:][index * 24_000 : (index + 1) * 24_000]
        yield Chunk(
            index=index,
            video=video[index * 24 : (index + 1) * 24],
            video_start_s=float(index),
            audio=audio,
            audio_start_s=index + lag,
            sample_rate=24_000,
        )


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return _evaluate(tmp_path_factory.mktemp("truth"), "--source", "truth", "--prompts", 8, "--seconds", 4)


def test_truth_has_every_key(truth):
    assert set(truth) == KEYS
    assert truth["drift"] is None


def test_truth_is_in_sync_and_as_asked(truth):
    assert truth["sync_ms_p50"] <= 5
    assert truth["sync_recall"] >= 0.9
    assert truth["sync_precision"] >= 0.95
    assert truth["adherence"] == 1


def test_truth_sounds_from_where_it_hits_and_has_no_fault(truth):
    assert truth["stereo_error_db"] <= 1
    assert abs(truth["stereo_bias_db"]) <= 0.2
    assert truth["colour_purity"] > 0.99
    assert truth["presence_3"] > 0.9
    assert {truth[name] for name in ("black_share", "duplicate_share", "freeze_s", "flashes")} == {0}


def test_figures_can_be_had_apart_by_the_number_of_balls(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue ball\na red ball and a green ball\n")
    figures = _evaluate(tmp_path, "--source", "truth", "--prompts", prompts, "--seconds", 2, "--by-count")
    assert set(figures) == KEYS | {"by_count"}
    assert {count: apart["clips"] for count, apart in figures["by_count"].items()} == {"1": 2, "2": 1}
    assert all(apart["presence"] > 0.9 and apart["adherence"] == 1 for apart in figures["by_count"].values())


def test_swapped_sound_is_out_of_sync(tmp_path):
    swapped = _evaluate(tmp_path, "--source", "truth", "--prompts", 8, "--seconds", 4, "--swap-sound")
    assert swapped["sync_recall"] <= 0.3
    assert swapped["sync_precision"] <= 0.3
    assert swapped["count_accuracy"] == 1
    assert swapped["pitch_accuracy"] < 0.5


def test_a_long_clip_reports_drift(tmp_path):
    figures = _evaluate(tmp_path, "--source", "truth", "--prompts", 1, "--seconds", 11)
    assert set(figures["drift"]["first"]) == {
        "sync_ms_p50",
        "sync_recall",
        "count_accuracy",
        "colour_error",
        "loudness_db",
        "noise_floor_db",
    }
    assert figures["drift"]["first"]["noise_floor_db"] < -60


def test_codecs_leave_what_is_judged(tmp_path):
    figures = _evaluate(tmp_path, "--source", "codecs", "--prompts", 2, "--seconds", 3)
    assert figures["colour_accuracy"] == figures["pitch_accuracy"] == 1
    assert figures["sync_recall"] >= 0.85


def test_a_file_is_judged_like_the_clip_it_was_written_from(tmp_path):
    scene = physics.sample_world([992, 1], colours=["red", "blue"])
    film, prompt = tmp_path / "film.mp4", tmp_path / "prompt.txt"
    with Mp4Writer(film, height=64, width=64, frame_rate=24, sample_rate=24_000) as writer:
        for chunk in _chunks(scene, 4):
            writer.write(chunk)
    prompt.write_text("a red ball and a blue ball\n")
    figures = _evaluate(tmp_path, "--file", film, "--prompts", prompt)
    assert figures["sync_ms_p50"] < 5
    assert figures["sync_recall"] >= 0.9
    assert figures["sync_precision"] >= 0.9
    assert figures["adherence"] == 1
    assert _evaluate(tmp_path, "--file", film)["adherence"] is None


def test_a_file_keeps_its_colours_and_the_time_of_its_sound(tmp_path):
    scene = physics.sample_world([992, 2], colours=["yellow"])
    film = tmp_path / "film.mp4"
    with Mp4Writer(film, height=64, width=64, frame_rate=24, sample_rate=24_000) as writer:
        for chunk in _chunks(scene, 2):
            writer.write(chunk)
    video, audio, rate = read_film(film)
    assert rate == 24_000
    assert np.abs(video.astype(int) - render.render_video(scene, 49)).mean() < 4
    sound = render.render_audio(scene, 48_000)
    shifts = [np.dot(audio[5000 + s : 45_000 + s].sum(1), sound[5000:45_000].sum(1)) for s in range(-50, 51)]
    assert abs(int(np.argmax(shifts)) - 50) <= 2


@pytest.mark.parametrize("lag", [0.0, 0.17])
def test_the_student_is_judged_by_its_chunks(tmp_path, monkeypatch, lag):
    asked = []

    def open_stream(weights, *, prompt, seconds, seed):
        asked.append((prompt, seed))
        colours = sources.read_request(prompt).colours
        return _chunks(physics.sample_world([992, seed], colours=colours), seconds, lag)

    monkeypatch.setattr(sources, "open_stream", open_stream)
    figures = _evaluate(
        tmp_path, "--source", "student", "--weights", tmp_path, "--prompts", 2, "--seconds", 4, "--seed", 7
    )
    assert [prompt for prompt, _ in asked] == sample_prompts(2, 7)
    assert len({seed for _, seed in asked}) == 2
    assert figures["sync_ms_p50"] < 5
    assert figures["adherence"] == 1


def test_the_teacher_is_asked_in_batches_and_judged_by_its_clips(tmp_path, monkeypatch):
    sizes = []

    def sample_clip(weights, *, prompts, seconds, seed, steps):
        sizes.append((len(prompts), steps))
        scenes = [
            physics.sample_world([992, seed, i], colours=sources.read_request(p).colours) for i, p in enumerate(prompts)
        ]
        return [
            Chunk(
                index=0,
                video=render.render_video(scene, 49),
                video_start_s=0.0,
                audio=render.render_audio(scene, 49_000),
                audio_start_s=0.0,
                sample_rate=24_000,
            )
            for scene in scenes
        ]

    monkeypatch.setattr(sources, "sample_clip", sample_clip)
    flags = ["--source", "teacher", "--weights", tmp_path, "--prompts", 10, "--seconds", 2, "--steps", 9]
    assert _evaluate(tmp_path, *flags)["count_accuracy"] == 1
    assert sizes == [(8, 9), (2, 9)]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--source", "truth", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--source", "truth", "--prompts", "0"], "at least 1"),
        (["--source", "truth", "--prompts", "BAD"], "'mauve'"),
        (["--source", "truth", "--prompts", "CONTRADICTION"], "says two but names 1"),
        (["--source", "truth", "--prompts", "EMPTY"], "no prompt"),
        (["--source", "truth", "--seconds", "0"], "--seconds 0"),
        (["--source", "truth", "--prompts", "1", "--swap-sound"], "two prompts"),
        (["--source", "truth", "--json", "EMPTY/x.json"], "cannot write EMPTY"),
        (["--source", "student", "--weights", "no/such/weights"], "no/such/weights"),
        (["--file", "missing.mp4"], "missing.mp4"),
        (["--file", "EMPTY"], "cannot read"),
        ([], "one of --source and --file"),
        (["--source", "truth", "--file", "x.mp4"], "one of --source and --file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, capsys, monkeypatch, flags, complaint):
    texts = {"BAD": "a red ball\na mauve ball\n", "CONTRADICTION": "two balls: red\n", "EMPTY": "\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(render, "render_video", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as caught:
        evaluate.main(tyro.cli(evaluate.Arguments, args=flags))
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip()
    assert complaint in message
    assert message.startswith("error: ")
    assert "\n" not in message


def test_the_contact_sheet_is_a_picture_that_grows_with_the_clip(tmp_path):
    scene = physics.sample_world([992, 3], colours=["red", "green"])
    sizes = []
    for seconds in (4, 8):
        frames = seconds * 24 + 1
        path = tmp_path / f"{seconds}.png"
        film = Film(render.render_video(scene, frames), render.render_audio(scene, frames * 1000), 24_000)
        write_contact_sheet(path, film, perceive(film), "two")
        image = path.read_bytes()
        assert image.startswith(b"\x89PNG")
        sizes.append([int.from_bytes(image[i : i + 4], "big") for i in (16, 20)])
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.5 * sizes[0][1]
    assert "matplotlib.pyplot" not in sys.modules
