"""Sample clips of a network in training: files that play, and a failure that does not end the run."""

import av
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stream
from PIL import Image

from experiments.ltx2_flags import V1_SIGMAS
from experiments.ltx2_samples import Examples, Sampler, contact_sheet, hooks, write_png
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.pipeline.presets import TINY_CLIP, TINY_STREAM
from omniforcing_jax.pipeline.weights_folder import read_pipeline_config

PROMPT = "a red ball"


def sampler(folder, kind, **other):
    pipeline, config = {
        "student": (tiny_stream.student(), TINY_STREAM),
        "teacher": (tiny_stream.teacher(), TINY_CLIP),
    }[kind]
    contexts = text_source.encode_text(pipeline, (PROMPT,), None)
    sigmas = () if config.sampler else V1_SIGMAS
    values = {"folder": folder, "begun": tiny_stream.folders() / kind, "config": config, "dtype": jnp.dtype("float32")}
    values |= {"examples": Examples([(PROMPT, contexts)], 1, sigmas), "params_of": lambda state: state}
    return Sampler(**{**values, **other}), pipeline.transformer


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_clip_with_sound_and_its_contact_sheet_are_made(kind, tmp_path, caplog):
    make, params = sampler(tmp_path / "samples", kind)
    make(500, params)
    assert caplog.text == ""
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_000500_0.mp4", "step_000500_0.png"]
    with av.open(str(tmp_path / "samples" / "step_000500_0.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 25
    with av.open(str(tmp_path / "samples" / "step_000500_0.mp4")) as file:
        assert sum(frame.samples for frame in file.decode(audio=0)) > 10_000
    with Image.open(tmp_path / "samples" / "step_000500_0.png") as sheet:
        assert sheet.size == (960, 64 + 80)


def test_a_clip_that_cannot_be_made_is_a_line_in_the_log(tmp_path, caplog):
    (tmp_path / "samples").write_text("a file is no folder")
    make, params = sampler(tmp_path / "samples", "teacher")
    make(500, params)
    assert "no sample clips of step 500: " in caplog.text


def test_missing_codecs_are_refused_before_the_first_step_and_never_asked_for_where_none_are_wanted(tmp_path):
    make, _ = sampler(tmp_path / "samples", "student", begun=tmp_path)
    assert hooks(0, make) == ()
    with pytest.raises(ValueError, match="config"):
        hooks(2, make)
    good, _ = sampler(tmp_path / "samples", "student", config=read_pipeline_config(tiny_stream.folders() / "student"))
    assert [hook.every for hook in hooks(2, good)] == [2]


def test_a_contact_sheet_shows_frames_over_time_and_the_envelope_of_the_sound(tmp_path):
    video = np.repeat(np.arange(100, dtype=np.uint8)[:, None, None, None], 3, axis=3) * np.ones(
        (1, 320, 160, 1), np.uint8
    )
    audio = np.zeros((1600, 2), np.float32)
    audio[800:] = [1.0, -1.0]
    sheet = contact_sheet(video, audio)
    assert sheet.shape == (160 + 80, 10 * 80, 3)
    assert sheet[0, ::80, 0].tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    drawn = (sheet[160:] == (118, 134, 181)).all(axis=2).sum(axis=0)
    assert drawn[:400].max() <= 2  # silence is a line
    assert (drawn[400:] == 80).all()
    write_png(tmp_path / "sheet.png", sheet)
    with Image.open(tmp_path / "sheet.png") as read:
        np.testing.assert_array_equal(np.asarray(read), sheet)
