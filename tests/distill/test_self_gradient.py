"""Self gradient forcing in a replay against the same in one graph, whose clean passes are differentiated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rollout_scenes import (
    KEYS,
    QUICKEST,
    SCENES,
    SINKS,
    Scene,
    assert_same_gradient,
    contexts_of,
    sampler,
    setting_of,
    wish,
)

from omniforcing_jax.distill import self_forcing, self_gradient
from omniforcing_jax.rollout import make_prompt_kv

PER_STEP = "text keys per step, one exit"  # which no clip in one piece can have
LONG = [name for name in SCENES if name not in (PER_STEP, QUICKEST)]  # the short scene below is like the quickest


def scene_draws(scene: Scene):
    """Contexts, parameters, draws and plan of a scene."""
    static = setting_of(scene)
    plan = self_forcing.plan_rollout(static, len(scene.exits), text_gradient=scene.text_gradient, remat=scene.remat)
    draws = self_forcing.Draws(jnp.asarray(scene.exits), self_forcing.noise_from_keys(KEYS, static))
    return contexts_of(scene.config), tiny.random_params(scene.config), draws, plan


@pytest.mark.parametrize(
    "scene",
    [
        Scene(dataclasses.replace(SINKS, layers=1), sampler(context_noise=0.2), (0, 1)),
        *(pytest.param(SCENES[name], marks=pytest.mark.long, id=name) for name in LONG),
    ],
)
def test_a_replay_has_the_gradient_of_one_graph_through_its_clean_passes(scene):
    contexts, params, draws, plan = scene_draws(scene)

    @jax.jit
    def replayed(params):
        return self_gradient.replayed_gradient(params, contexts, lambda clip: (wish(clip), None), draws, plan)

    @jax.jit
    def one_graph(params):
        def make(params):
            return self_forcing.single_graph(params, contexts, draws, plan, through_cache=True)

        clip, pull = jax.vjp(make, params)
        return pull(wish(clip))[0], clip

    gradient, clip, _ = replayed(params)
    expected, expected_clip = one_graph(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), clip, expected_clip)
    assert_same_gradient(gradient, expected)


def test_text_that_depends_on_the_noise_level_is_refused_unless_it_is_held():
    scene = SCENES[PER_STEP]
    contexts, params, draws, plan = scene_draws(scene)

    def make():
        prompt = make_prompt_kv(params, *contexts, static=plan.static)
        made = self_forcing.roll_out(params, prompt, draws, plan, tiny.BATCH)
        return self_gradient.replay(params, contexts, made, draws, plan)

    with pytest.raises(ValueError, match="scalar_sigma"):
        jax.eval_shape(make)
