"""Videos become clips: scenes are cut, useless ones dropped, the rest encoded as a stream would encode them."""

import csv
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import make_latents
from experiments.videos.buckets import choose_size, cut, parse_sizes
from experiments.videos.listing import list_videos
from experiments.videos.scenes import Rules, find_cuts
from omniforcing_jax.codecs.audio_vae import AudioVAE
from omniforcing_jax.codecs.mel import fit_rows, log_mel
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.pipeline.shipped import STUDENT, find_weights
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.stream.conditioning.media import read_frames, read_sound
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.train.clips import open_clips

RATE = 16_000


def noise(seconds, level=0.1):
    return np.random.default_rng(0).normal(0, level, (round(seconds * RATE), 2)).astype(np.float32)


def moving(frames, height=64, width=96, shade=120):
    """A bright square that wanders over a ground of one shade; it turns back at the sides."""
    video = np.full((frames, height, width, 3), shade, np.uint8)
    for i in range(frames):
        x = abs((3 * i) % (2 * (width - 16)) - (width - 16))
        video[i, 20:36, x : x + 16] = 255
    return video


def write(path, video, sound, rate=24):
    write_mp4(path, video, sound, frame_rate=rate, sample_rate=RATE)
    return path


def test_a_scene_is_cut_into_the_longest_clips_that_fit():
    pieces = cut(10.0, 10.0 + (24 * 8 + 2) / 24, (64, 64), (1, 2, 5))
    assert [(piece.bucket.seconds, round(24 * (piece.start_s - 10))) for piece in pieces] == [(5, 0), (2, 121)]
    assert cut(0.0, 1.0, (64, 64), (1,)) == []  # a clip has one frame more


@pytest.mark.parametrize(
    ("shown", "size"),
    [((720, 1280), (512, 768)), ((1280, 720), (768, 512)), ((500, 500), (448, 448)), ((300, 300), None)],
)
def test_the_nearest_shape_is_chosen_unless_a_picture_would_be_enlarged_too_much(shown, size):
    assert choose_size(shown, ((512, 768), (768, 512), (448, 448)), 1.25) == size


@pytest.mark.parametrize("text", ["512", "512x", "x", "512x767", "0x64", "-64x64", "64x64x3", "6_4x64"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="sizes"):
        parse_sizes((text,), 32)


def test_cuts_are_found_where_one_scene_ends_and_another_begins(tmp_path):
    video = np.concatenate([moving(30, shade=60), moving(40, shade=160), moving(30, shade=100)])
    path = write(tmp_path / "a.mp4", video, noise(100 / 24))
    assert [round(24 * time) for time in find_cuts(read_media(path).picture, Rules())] == [30, 70]


def test_frames_are_read_from_any_second_on(tmp_path):
    path = write(tmp_path / "a.mp4", moving(96), noise(4))
    whole = next(read_frames(path, iter([96])))
    for start in (0, 7, 50):
        part = next(read_frames(path, iter([20]), start_s=start / 24))
        np.testing.assert_array_equal(part, whole[start : start + 20])


@pytest.fixture
def films(tmp_path):
    """A folder of six videos of which two are of use."""
    folder = tmp_path / "films"
    (folder / "inner").mkdir(parents=True)
    write(folder / "a.mp4", np.concatenate([moving(60, shade=60), moving(60, shade=160)]), noise(5))
    write(folder / "inner" / "b.mp4", moving(75, 128, 128), noise(2.5), rate=30)
    write(folder / "silent.mp4", moving(60), noise(2.5, 1e-5))
    write(folder / "still.mp4", moving(1).repeat(60, 0), noise(2.5))
    write(folder / "short.mp4", moving(20), noise(20 / 24))
    (folder / "broken.mp4").write_bytes(b"no video")
    for path in folder.rglob("*.mp4"):
        path.with_suffix(".txt").write_text(f"\ufeffa square\nof {path.stem}\n", encoding="utf-8")
    write(folder / "unsaid.mp4", moving(60), noise(2.5))
    return folder


def make(films, folder, **options):
    options = {"sizes": ("64x64", "64x96"), "seconds": (1, 2), **options}
    make_latents.main(make_latents.Arguments(videos=films, weights=find_weights(STUDENT), folder=folder, **options))
    return open_clips(folder)


def test_a_folder_becomes_buckets_of_latents_and_a_rerun_does_nothing(films, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clips = make(films, tmp_path / "clips")
    counts = {size: len(each) for size, each in clips.items()}
    assert counts == {(64, 64, 49): 1, (64, 96, 49): 2}
    assert sorted(clips[64, 96, 49].prompts) == ["a square of a"] * 2
    said = {record.getMessage() for record in caplog.records}
    for reason in ("no caption", "silent", "still", "too short", "unreadable"):
        assert f"dropped as {reason}: 1" in said
    found = tmp_path / "clips" / "00000-of-00001"
    assert (found / "prompts.txt").read_text() == "a square of a\na square of b\n"
    monkeypatch.setattr("experiments.videos.look.read_media", None)  # nothing is looked at or encoded again
    monkeypatch.setattr(make_latents, "encode", None)
    assert {size: len(each) for size, each in make(films, tmp_path / "clips").items()} == counts


@pytest.mark.long
def test_latents_are_those_of_the_clip_decoded_by_itself(films, tmp_path):
    clip = make(films, tmp_path / "clips")[64, 96, 49][1]  # the second scene of a.mp4, which begins after 60 frames
    codecs = load_pipeline(STUDENT).codecs
    frames = next(read_frames(films / "a.mp4", iter([120])))[60:109]
    pixels = jnp.asarray(frames[None], jnp.float32) / 127.5 - 1
    video = VideoVAE(codecs.video_config).apply(codecs.video, pixels, method="encode")
    np.testing.assert_allclose(
        clip["clip_video"], np.asarray(video).reshape(clip["clip_video"].shape), rtol=1e-3, atol=2e-3
    )
    heard = read_sound(films / "a.mp4", RATE, 2, start_s=60 / 24)[: 2 * RATE]
    rows = fit_rows(log_mel(jnp.asarray(heard[None])), codecs.audio_config.mel_rows(51))
    audio = AudioVAE(codecs.audio_config).apply(codecs.audio, rows, method="encode")
    np.testing.assert_allclose(
        clip["clip_audio"][:-1], np.asarray(audio)[0, :-1], rtol=1e-3, atol=2e-3
    )  # its end is reflected


@pytest.mark.long
def test_processes_side_by_side_make_what_one_makes(films, tmp_path):
    one = make(films, tmp_path / "one")
    for process in range(2):
        two = make(films, tmp_path / "two", process=process, processes=2)
    assert {size: sorted(clips.prompts) for size, clips in one.items()} == {
        size: sorted(clips.prompts) for size, clips in two.items()
    }


def test_a_table_names_files_and_captions(films, tmp_path):
    table = films / "table.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.DictWriter(file, ["file_name", "Caption", "other"])
        rows.writeheader()
        rows.writerow({"file_name": "a.mp4", "Caption": "one, two\nthree", "other": "x"})
        rows.writerow({"file_name": "inner/b.mp4", "Caption": "  ", "other": "x"})
    assert [video.caption for video in list_videos(table)] == ["one, two three", None]
    assert [video.caption for video in list_videos(table, caption_column="other")] == ["x", "x"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "has the columns"),
        ("path,caption\nmissing.mp4,x\n", "line 2: .*missing.mp4: no such file"),
        ("path,caption\na.mp4,x\na.mp4,y\n", "twice"),
        ("path,video,caption\na.mp4,a.mp4,x\n", "--path-column"),
        ("path,caption\n", "has no videos"),
    ],
)
def test_a_table_that_says_nothing_clear_is_refused(films, text, complaint):
    (films / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        list_videos(films / "table.csv")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sizes": ("60x64",)}, "multiples of"),
        ({"seconds": ()}, "seconds"),
        ({"seconds": (0,)}, "seconds"),
        ({"process": 2, "processes": 2}, "process=2"),
    ],
)
def test_flags_are_checked_before_any_work(films, tmp_path, capsys, options, complaint):
    with pytest.raises(SystemExit):
        make(films, tmp_path / "clips", **options)
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "clips").exists()
