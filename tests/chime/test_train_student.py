"""What chime's student learns from: samples of both kinds, and those whose prompt changes.

Such a sample has another clip's past up to a border and its own clip from there on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chime import train_student
from experiments.chime.world import recipe, trajectories
from omniforcing_jax.layout import block_of_frames
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.text import words

SIGMAS = jnp.array(recipe.STUDENT_SIGMAS, jnp.float32)
FRAMES_V, FRAMES_A = block_of_frames(trajectories.BLOCKS)


def _clips(count, tokens=4, width_v=3, width_a=4):
    """Clips a second longer than what is learned; all of clip i is i."""
    clips = np.arange(count, dtype=np.float16)
    video = np.broadcast_to(clips[:, None, None, None, None], (count, len(FRAMES_V) + 3, tokens // 2, 2, width_v))
    audio = np.broadcast_to(clips[:, None, None], (count, len(FRAMES_A) + 25, width_a))
    return {"video": jnp.asarray(video), "audio": jnp.asarray(audio)}


def _recorded_rows(count, tokens=4, width_v=3, width_a=4):
    """Rows of `pairs`; entry e of clip i is i + e / 100."""
    rows = (np.arange(count)[:, None] + np.arange(len(SIGMAS))[::-1] / 100)[:, :, None, None].astype(np.float16)
    return {
        "video": jnp.asarray(np.broadcast_to(rows, (count, len(SIGMAS), tokens * len(FRAMES_V), width_v))),
        "audio": jnp.asarray(np.broadcast_to(rows, (count, len(SIGMAS), len(FRAMES_A), width_a))),
    }


def _straight(count):
    return trajectories.straight(_clips(count), SIGMAS, jax.random.key(1))


def _recorded(count):
    return trajectories.recorded(_recorded_rows(count), SIGMAS, jax.random.key(1))


@pytest.fixture(params=[_straight, _recorded])
def make(request):
    return request.param


def test_both_kinds_of_entries_have_one_form_and_end_in_the_clip(make):
    count = 3
    trajectory = make(count)
    shapes = (len(SIGMAS), count, 4 * len(FRAMES_V), 3), (len(SIGMAS), count, len(FRAMES_A), 4)
    assert (trajectory.video.shape, trajectory.audio.shape) == shapes
    for last in (trajectory.video[-1], trajectory.audio[-1]):
        np.testing.assert_array_equal(last[:, 0, 0], np.arange(count))


def test_no_share_changes_nothing(make):
    trajectory = make(3)
    changed = trajectories.change_pasts(trajectory, jax.random.key(0), 0.0)
    assert not changed.since.any()
    jax.tree.map(np.testing.assert_array_equal, changed.replace(since=None), trajectory)


def test_both_streams_change_at_the_same_border_in_every_entry(make):
    count = 64
    trajectory = make(count)
    changed = trajectories.change_pasts(trajectory, jax.random.key(0), 1.0)
    since = changed.since
    assert set(np.unique(since)) == set(range(1, len(trajectories.BLOCKS)))
    for name, blocks in (("video", FRAMES_V), ("audio", FRAMES_A)):
        before, after = (np.asarray(getattr(x, name)) for x in (trajectory, changed))
        blocks = np.repeat(blocks, before.shape[2] // len(blocks))
        for i in range(count):
            own = blocks >= since[i]
            np.testing.assert_array_equal(after[:, i, own], before[:, i, own])
            np.testing.assert_array_equal(after[:, i, ~own], before[:, i - 1, ~own])


@pytest.mark.parametrize(("entries", "rows"), [("data", _clips), ("teacher", _recorded_rows)])
def test_the_loss_takes_both_kinds_of_entries(entries, rows):
    config = dataclasses.replace(train_student.CONFIG, entries=entries)
    assert config.changes
    assert config.ode.guidance != 1
    widths = config.model.video.latent_channels, config.model.audio.latent_channels
    batch = {**rows(2, 16, *widths), "ids": jnp.zeros((2, 16), jnp.int32)}
    loss = train_student.make_loss(config, recipe.word_vectors())
    params = spec.abstract(transformer_spec(config.model))
    value, _ = jax.eval_shape(loss, params, batch, jax.random.key(0))
    assert value.shape == ()


def test_clips_of_many_balls_come_more_often():
    vocabulary = recipe.WORDS_CONFIG
    prompts = ("a red ball", "three bouncing balls: red, cyan and blue", "a green ball and a red ball")
    ids = np.stack([words.tokenise(vocabulary, prompt)[0] for prompt in prompts])
    rows = recipe.by_balls({"ids": ids, "video": np.arange(3)})
    np.testing.assert_array_equal(rows["video"], [0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(rows["ids"], ids[[0, 1, 1, 1, 2, 2]])
