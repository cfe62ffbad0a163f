"""The network against the same in NumPy: every noise level, every row of modulation and every order that counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.model import transformer
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import predict, text_kv
from omniforcing_jax.model.view import Sigmas, bidirectional
from omniforcing_jax.model.whole_clip import predict_x0
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts
from tests.by_hand import head, velocities, wide
from tests.tiny import BATCH, GRID, MODERN, SINKS, TINY, TOKENS, random_latents, random_params

FRAMES, AUDIO = 2, 9
MASK = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])


def contexts_of(config):
    rng = np.random.default_rng(5)
    widths = [config.caption_channels or stream.width for stream in (config.video, config.audio)]
    return [jnp.asarray(rng.normal(size=(BATCH, 4, width)), jnp.float32) for width in widths]


def per_frame(seed):
    """Noise levels of every latent frame of both streams, [B, F] and [B, A]."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.05, 0.95, (BATCH, count)) for count in (FRAMES, AUDIO)]


def per_token(config, levels):
    """The levels of every token: those of its frame, and sinks as the first audio latent."""
    video, audio = levels
    return np.repeat(video, TOKENS, axis=1), np.concatenate([np.repeat(audio[:, :1], config.sinks, 1), audio], 1)


def predicted(config, params, latents, contexts, sigmas, *, text_sigma=None):
    turned = rotaries(config, make_positions(config, clip_block(FRAMES, AUDIO), GRID))

    @jax.jit
    def run(params, latents, contexts, sigmas):
        text = text_kv(params, *contexts, jnp.asarray(MASK), sigma=text_sigma)
        return predict(params, config, Streams(*latents), bidirectional(config, turned, sigmas), text).velocity

    return run(params, latents, contexts, sigmas)


def assert_close(found, expected):
    for name, one, other in zip(("video", "audio"), found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("semantics", list(CrossTimestep))
def test_the_network_is_its_formula_with_levels_per_frame_and_sinks(semantics):
    config = dataclasses.replace(SINKS, cross_timestep=semantics, gate_multiplier=7.0)
    params, latents, contexts = random_params(config), random_latents(config, FRAMES, AUDIO), contexts_of(config)
    own, (scalar_v, scalar_a) = per_frame(1), np.random.default_rng(2).uniform(0.1, 0.9, (2, BATCH))
    levels = per_token(config, own)
    others = [np.broadcast_to(s[:, None], x.shape) for s, x in zip((scalar_a, scalar_v), levels, strict=True)]
    crossing = others if semantics is CrossTimestep.CROSS else levels
    gates = levels if semantics is CrossTimestep.OWN else others
    sigmas = Sigmas(*(jnp.asarray(x, jnp.float32) for x in (*own, scalar_v, scalar_a)))
    found = predicted(config, params, latents, contexts, sigmas)
    assert_close(found, velocities(params, config, latents, contexts, MASK, levels, crossing, gates, GRID))


def test_the_next_generation_is_its_formula():
    sigma = np.array([0.3, 0.8])
    params, latents, contexts = random_params(MODERN), random_latents(MODERN, FRAMES, AUDIO), contexts_of(MODERN)
    levels = [np.repeat(sigma[:, None], count, axis=1) for count in (FRAMES * TOKENS, AUDIO)]
    one = jnp.asarray(sigma, jnp.float32)
    found = predicted(MODERN, params, latents, contexts, Sigmas(one[:, None], one[:, None]), text_sigma=one)
    assert_close(found, velocities(params, MODERN, latents, contexts, MASK, levels, levels, levels, GRID))


def test_a_clean_estimate_takes_each_samples_own_level_off_its_noise():
    sigma = np.array([0.3, 0.8])
    params, latents, contexts = random_params(TINY), random_latents(TINY, FRAMES, AUDIO), contexts_of(TINY)
    levels = [np.repeat(sigma[:, None], count, axis=1) for count in (FRAMES * TOKENS, AUDIO)]
    turned = rotaries(TINY, make_positions(TINY, clip_block(FRAMES, AUDIO), GRID))
    texts = TextContexts(*contexts, jnp.asarray(MASK))
    found = jax.jit(predict_x0, static_argnums=1)(params, TINY, latents, jnp.float32(sigma), texts, turned)
    velocity = velocities(params, TINY, latents, contexts, MASK, levels, levels, levels, GRID)
    assert_close(found, [x - sigma[:, None, None] * v for x, v in zip(latents, velocity, strict=True)])


def test_the_head_normalises_modulates_and_projects_in_float32_whatever_the_states_are():
    rng, p = np.random.default_rng(0), random_params(TINY).video
    states, vector = jnp.asarray(rng.normal(size=(2, 6, 64)), jnp.bfloat16), rng.normal(size=(2, 1, 64))
    found = transformer._head(p, states, jnp.asarray(vector, jnp.float32))
    np.testing.assert_allclose(found, head(*wide((p, states)), vector), atol=1e-4)
