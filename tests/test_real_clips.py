"""Stage 2 on real clips: of several sizes and lengths, beside trajectories or alone; what does not fit is refused."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stream
from refusal import recipe_refusal

from experiments import stage2_ode
from experiments.ltx2_regression import make_loss
from omniforcing_jax.distill.ode import OdeConfig, noise_clip
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.pipeline.presets import TINY_CLIP, TINY_STREAM
from omniforcing_jax.streams import Streams
from omniforcing_jax.train.clips import clips_header
from omniforcing_jax.train.contexts import contexts_header
from omniforcing_jax.train.pairs import pairs_header
from omniforcing_jax.train.store import Row, Writer

PROMPTS = ("a red ball", "a blue ball")
SECONDS = 2
SIGMAS = (1.0, 0.5, 0.0)
MODEL = TINY_CLIP.model
SIDE = MODEL.spatial_compression
CONFIG = dataclasses.replace(stage2_ode.CONFIG, seconds=SECONDS, sigmas=SIGMAS)


def write(folder, header, prompts=PROMPTS):
    rng, writer = np.random.default_rng(0), Writer(folder, header)
    for index, prompt in enumerate(prompts):
        arrays = {name: rng.normal(size=shape) for name, (_, shape) in header.arrays.items()}
        writer.put(index, Row(prompt, {k: x.astype(jnp.dtype(header.arrays[k][0])) for k, x in arrays.items()}))


def write_clips(folder, grid=tiny_stream.GRID, seconds=SECONDS, channels=None, side=SIDE):
    frames = 24 * seconds + 1
    header = clips_header(
        count=2,
        shards=1,
        size=(grid[0] * side, grid[1] * side, frames),
        video=(latent_frames(frames), *grid),
        channels=channels or (MODEL.video.latent_channels, MODEL.audio.latent_channels),
        codecs="abc",
    )
    write(folder / f"{grid[0]}x{grid[1]}-{seconds}s", header)
    return folder


@pytest.fixture
def told(tmp_path):
    """Contexts, two buckets of clips, pairs, and a recipe that is told of them."""
    channels = MODEL.caption_channels
    write(
        tmp_path / "contexts", contexts_header(count=2, shards=1, tokens=4, channels=(channels, channels), encoder="e")
    )
    write_clips(write_clips(tmp_path / "clips"), grid=(1, 2), seconds=1)
    frames = latent_frames(24 * SECONDS + 1)
    video = frames, *tiny_stream.GRID, MODEL.video.latent_channels
    audio = 1 + 25 * SECONDS, MODEL.audio.latent_channels
    write(tmp_path / "pairs", pairs_header(count=2, shards=1, sigmas=SIGMAS, video=video, audio=audio, teacher="t"))
    given = {
        "student": tiny_stream.folders() / "teacher",
        "contexts": tmp_path / "contexts",
        "clips": tmp_path / "clips",
        "folder": tmp_path / "run",
        "layout": "prefix",
        "config": CONFIG,
        "steps": 2,
        "batch": 2,
        "held_out": 0.0,
        "sample_every": 0,
    }
    return lambda **other: stage2_ode.Arguments(**{**given, **other})


def test_a_clip_is_noised_to_every_level_along_one_line():
    rng = np.random.default_rng(0)
    clip = Streams(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 6, 3), (2, 5, 4))))
    made = noise_clip(clip, jnp.asarray(SIGMAS), jax.random.key(0))
    for entries, clean in ((made.video, clip.video), (made.audio, clip.audio)):
        assert entries.shape == (3, *clean.shape)
        np.testing.assert_array_equal(entries[-1], clean)
        np.testing.assert_allclose(entries[1], (entries[0] + clean) / 2, atol=1e-6)
        assert abs(float(np.corrcoef(entries[0].ravel(), clean.ravel())[0, 1])) < 0.7  # the first one is noise
    assert not np.allclose(made.video[0, :, :3, 0], made.audio[0, :, :3, 0])


@pytest.mark.long
def test_the_loss_of_real_clips_is_that_of_their_straight_trajectory(told):
    """A clip as pairs would have it, and as clips have it, with the same noise."""
    student = dataclasses.replace(
        TINY_STREAM, sampler=dataclasses.replace(TINY_STREAM.sampler, sigmas=SIGMAS, horizon_seconds=SECONDS)
    )
    loss = jax.jit(make_loss(student, OdeConfig(), jnp.float32))
    rng, frames = np.random.default_rng(1), latent_frames(24 * SECONDS + 1)
    video = rng.normal(size=(2, frames, *tiny_stream.GRID, MODEL.video.latent_channels)).astype(np.float16)
    audio = rng.normal(size=(2, 1 + 25 * SECONDS, MODEL.audio.latent_channels)).astype(np.float16)
    contexts = {
        f"context_{k}": rng.normal(size=(2, 4, MODEL.caption_channels)).astype(np.float32) for k in ("video", "audio")
    }
    contexts["context_mask"] = np.ones((2, 4), bool)
    params, key = tiny_stream.student().transformer, jax.random.key(5)
    value, metrics = loss(params, {"clip_video": video, "clip_audio": audio, **contexts}, key)
    for_noise, for_loss = jax.random.split(key)
    tokens = jnp.asarray(video.reshape(2, -1, video.shape[-1]), jnp.float32)
    line = noise_clip(Streams(tokens, jnp.asarray(audio, jnp.float32)), jnp.asarray(SIGMAS), for_noise)
    pairs = {"video": line.video.swapaxes(0, 1), "audio": line.audio.swapaxes(0, 1), **contexts}
    expected, parts = loss(params, pairs, for_loss)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics.keys() == {"real/video", "real/audio"}
    np.testing.assert_allclose(metrics["real/audio"], parts["audio"], rtol=1e-6)


def test_every_bucket_and_the_pairs_take_their_turns(told, tmp_path, monkeypatch):
    seen = []

    def keep(run, trainer, update, batches, **others):
        seen.extend(tuple(sorted((k, x.shape) for k, x in next(batches).items() if "video" in k)) for _ in range(40))
        return trainer

    monkeypatch.setattr("omniforcing_jax.train.loop.train", keep)
    stage2_ode.main(told(pairs=tmp_path / "pairs", real_share=0.5))
    shapes = {dict(batch).get("clip_video", dict(batch).get("video")) for batch in seen}
    channels, (rows, columns) = MODEL.video.latent_channels, tiny_stream.GRID
    assert shapes == {
        (2, 7, rows, columns, channels),
        (2, 4, 1, 2, channels),
        (2, len(SIGMAS), 7 * rows * columns, channels),
    }


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"clips": None}, "pairs=None: give --pairs, --clips, or both"),
        ({"real_share": 0.5}, "real_share=0.5: must be a share of the steps"),
        ({"pairs": "pairs"}, "real_share=None: must be a share of the steps"),
        ({"pairs": "pairs", "real_share": 1.0}, "real_share=1.0: must be a share of the steps"),
        ({"pairs": "pairs", "clips": None, "real_share": 0.2}, "real_share=0.2: must be a share of the steps"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(other, said, told):
    with pytest.raises(ValueError, match=re.escape(said)):
        told(**other)


def test_clips_that_do_not_fit_are_refused(told, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.ltx2_recipe.load_network", None)
    message = recipe_refusal(capsys, stage2_ode, told(clips=write_clips(tmp_path / "long", seconds=3)))
    assert "pixels and 73 frames: longer than --seconds 2" in message
    message = recipe_refusal(capsys, stage2_ode, told(clips=write_clips(tmp_path / "other", channels=(5, 7))))
    assert f"other latents: video=5, expected {MODEL.video.latent_channels}; audio=7" in message
    message = recipe_refusal(capsys, stage2_ode, told(clips=write_clips(tmp_path / "side", side=2 * SIDE)))
    assert "other latents: grid=" in message
    assert "2 clips of" in recipe_refusal(capsys, stage2_ode, told(batch=3))
    assert "clips of another layout" in recipe_refusal(capsys, stage2_ode, told(layout="prefix2"))
    assert "has no clips" in recipe_refusal(capsys, stage2_ode, told(clips=tmp_path / "nothing"))


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
def test_a_run_on_pairs_and_clips_is_resumed_exactly(told, tmp_path):
    both = {"pairs": tmp_path / "pairs", "real_share": 0.7, "steps": 6, "save_every": 3, "log_every": 1}
    stage2_ode.main(told(**both, folder=tmp_path / "whole"))
    stage2_ode.main(told(**{**both, "steps": 3}, folder=tmp_path / "broken"))
    stage2_ode.main(told(**both, folder=tmp_path / "broken"))
    whole, broken = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    )
    named = {name for line in whole for name in line}
    assert {"video", "real/video"} <= named
    for line, other in zip(whole, broken, strict=True):
        assert {k: x for k, x in line.items() if k != "s_per_step"} == {
            k: x for k, x in other.items() if k != "s_per_step"
        }
