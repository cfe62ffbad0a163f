"""Stage 3 in two passes against the same in one graph, for every kind of rollout."""

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
    SIGMAS,
    SINKS,
    Scene,
    assert_same_gradient,
    contexts_of,
    sampler,
    setting_of,
    wish,
)

from omniforcing_jax.distill import self_forcing
from omniforcing_jax.layout import FUSED
from omniforcing_jax.rollout import StaticConfig, make_prompt_kv, rollout
from omniforcing_jax.streams import Streams

BEHIND_TEXT = {"k/w", "k/b", "v/w", "v/b", "k_norm"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICKEST else pytest.mark.long) for name in SCENES]
)
def test_two_passes_give_the_gradient_of_one_graph(name):
    scene = SCENES[name]
    static, contexts = setting_of(scene), contexts_of(scene.config)
    params = tiny.random_params(scene.config)
    options = {"text_gradient": scene.text_gradient, "remat": scene.remat}
    plan = self_forcing.plan_rollout(static, len(scene.exits), **options)
    draws = self_forcing.Draws(jnp.asarray(scene.exits), self_forcing.noise_from_keys(KEYS, static))

    @jax.jit
    def two_passes(params):
        return self_forcing.two_pass_gradient(params, contexts, lambda clip: (wish(clip), None), draws, plan)

    @jax.jit
    def one_graph(params):
        clip, pull = jax.vjp(lambda params: self_forcing.single_graph(params, contexts, draws, plan), params)
        return pull(wish(clip))[0], clip

    gradient, clip, _ = two_passes(params)
    expected, expected_clip = one_graph(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), clip, expected_clip)
    gradient = assert_same_gradient(gradient, expected)
    silent = {leaf for leaf, value in gradient.items() if not jnp.any(value)}
    behind_text = {leaf for leaf in gradient if "/caption/" in leaf or leaf.partition("text_attn/")[2] in BEHIND_TEXT}
    assert silent == (set() if scene.text_gradient else behind_text)


def test_a_clip_is_what_a_stream_of_the_same_keys_makes():
    static, contexts = setting_of(Scene(SINKS, sampler(), ())), contexts_of(SINKS)
    params = tiny.random_params(SINKS)
    made = roll(static, params, contexts, jnp.full(4, static.sampler.steps - 1))
    streamed = rollout(params, make_prompt_kv(params, *contexts, static=static), KEYS, 4, static=static)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), made, streamed)


def test_a_clip_that_stops_at_a_step_is_what_a_student_with_that_many_steps_makes():
    """After the second step of three, with text keys that depend on the step and noise of which a share is fresh."""
    config = dataclasses.replace(tiny.MODERN, sinks=2, layers=1)
    static = StaticConfig(config, sampler(renewal=0.5), (1, 2))
    few = dataclasses.replace(static.sampler, sigmas=(*SIGMAS[:2], 0.0))
    params, contexts = tiny.random_params(config), contexts_of(config)
    made = roll(static, params, contexts, jnp.full(3, 1))
    short = static._replace(sampler=few)
    streamed = rollout(params, make_prompt_kv(params, *contexts, static=short), KEYS, 3, static=short)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), made, streamed)


def test_the_context_of_a_clip_has_the_noise_of_a_stream_of_the_same_keys():
    config = dataclasses.replace(SINKS, layers=1)
    static = StaticConfig(config, sampler(context_noise=0.3), (1, 2))
    params, contexts = tiny.random_params(config), contexts_of(config)
    made = roll(static, params, contexts, jnp.full(3, static.sampler.steps - 1))
    streamed = rollout(params, make_prompt_kv(params, *contexts, static=static), KEYS, 3, static=static)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), made, streamed)


def roll(static, params, contexts, exits) -> Streams:
    """The first pass of self-forcing, as a clip."""
    prompt = make_prompt_kv(params, *contexts, static=static)
    draws = self_forcing.Draws(exits, self_forcing.noise_from_keys(KEYS, static))
    plan = self_forcing.plan_rollout(static, len(exits))
    roll_out = jax.jit(lambda params, prompt: self_forcing.roll_out(params, prompt, draws, plan, tiny.BATCH))
    return roll_out(params, prompt).x0.joined()


def test_cutting_a_clip_into_blocks_and_joining_them_changes_nothing():
    blocks = FUSED.blocks(10)
    clip = Streams(*(jnp.arange(2 * n * 3, dtype=jnp.float32).reshape(2, n, 3) for n in (20, 76)))
    joined = self_forcing.split_blocks(clip, blocks).joined()
    jax.tree.map(np.testing.assert_array_equal, joined, clip)


def test_exits_are_drawn_for_all_blocks_at_once_or_for_each():
    static = setting_of(Scene(SINKS, sampler(), ()))
    drawn = {
        shared: [self_forcing.draw_exits(jax.random.key(i), 6, static, shared=shared) for i in range(20)]
        for shared in (True, False)
    }
    assert all(len(set(map(int, row))) == 1 for row in drawn[True])
    assert {int(row[0]) for row in drawn[True]} == {0, 1, 2}
    assert any(len(set(map(int, row))) > 1 for row in drawn[False])


def test_one_block_is_no_clip():
    with pytest.raises(ValueError, match="blocks=1"):
        self_forcing.plan_rollout(setting_of(Scene(SINKS, sampler(), ())), 1)
