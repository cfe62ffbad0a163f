"""Chime's trainings with a critic: each method's gradients are those of the networks that it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chime import latents, pairs, train_causal_dmd, train_self_forcing, two_players
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets

BATCH = 2
SHAPES = {
    "video": jax.ShapeDtypeStruct((BATCH, 1 + 3 * pairs.SECONDS, 4, 4, 32), jnp.float16),
    "audio": jax.ShapeDtypeStruct((BATCH, 1 + 25 * pairs.SECONDS, 64), jnp.float16),
    "ids": jax.ShapeDtypeStruct((BATCH, latents.prompt_ids(0).shape[0]), jnp.int32),
}


@pytest.mark.parametrize(
    ("recipe", "clips_of"),
    [(train_self_forcing, None), (train_causal_dmd, train_causal_dmd.clips_of)],
    ids=["self_forcing", "causal_dmd"],
)
def test_both_players_are_differentiated_by_their_own_parameters(recipe, clips_of):
    players = recipe.make_players(recipe.CONFIG)
    generator, critic = two_players.gradients(players, clips_of)
    student, teacher = (spec.abstract(transformer_spec(model)) for model in (presets.CHIME, presets.CHIME_TEACHER))
    batch = SHAPES if clips_of else {"ids": SHAPES["ids"]}
    key = jax.eval_shape(lambda: jax.random.key(0))
    made = jax.eval_shape(
        lambda *args: generator(*args[:3], None, *args[3:]).grads, student, batch, key, teacher, teacher
    )
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, student)
    made = jax.eval_shape(lambda *args: critic(*args[:3], None, *args[3:]).grads, teacher, batch, key, student, teacher)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, teacher)
    assert len(players.blocks) == 1 + pairs.SECONDS


def test_clips_are_as_long_as_what_the_teacher_was_trained_on():
    rng = np.random.default_rng(0)
    batch = {name: rng.standard_normal(x.shape).astype(np.float16) for name, x in SHAPES.items() if name != "ids"}
    clips = train_causal_dmd.clips_of(batch)
    assert clips.video.shape[1:] == (16 * (1 + 3 * pairs.SECONDS), 32)
    assert clips.audio.shape[1:] == (1 + 25 * pairs.SECONDS, 64)
    np.testing.assert_array_equal(clips.video[1, 16:32], batch["video"][1, 1].reshape(16, 32).astype(np.float32))


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint of a training with a critic"):
        two_players.trained(tmp_path / "nothing")


def test_four_levels_are_the_reference_s():
    four = train_self_forcing.FOUR
    assert len(four.sampler.sigmas) == 5
    assert dataclasses.replace(four, sampler=two_players.Config().sampler) == two_players.Config()
