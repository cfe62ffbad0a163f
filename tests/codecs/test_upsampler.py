"""The latent upsampler block by block: what is exact, what is not, and how far that is from the whole clip."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fill

from experiments.upscaling import upsample_blocks
from omniforcing_jax.codecs import upsampler
from omniforcing_jax.codecs.upsampler import (
    MEMORY,
    ClipNorm,
    LatentUpsampler,
    Moments,
    init_upsampler,
    upsample_clip,
    upsample_next,
)
from omniforcing_jax.codecs.upsampler_config import LTX23_SPATIAL_UPSAMPLER, Resampling, UpsamplerConfig

CONFIG = UpsamplerConfig(latent_channels=3, width=32, layers=1, resampling=Resampling.SPACE)
VARIABLES = jax.tree_util.tree_map_with_path(
    lambda path, leaf: 1 + leaf if path[-1].key == "scale" else leaf, fill(init_upsampler(CONFIG))
)
VAE = {"stats": {"latents_mean": jnp.array([0.1, -0.2, 0.3]), "latents_std": jnp.array([0.5, 1.0, 2.0])}}
LATENTS = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 2, 3, 3)), jnp.float32)
BLOCKS = (3, 3, 3, 3)
whole = jax.jit(lambda latents: upsample_clip(CONFIG, VARIABLES, VAE, latents))


def compile_step():
    """Return a step of a stream, to be compiled for each look-ahead."""
    step = lambda x, carry, ahead: upsample_next(CONFIG, VARIABLES, VAE, x, carry, ahead)  # noqa: E731
    return jax.jit(step, static_argnames="ahead")


STEP = compile_step()


def streamed(latents, ahead, remembers=True, step=STEP):
    """Upsample in blocks, as a stream does."""
    return upsample_blocks(step, jnp.split(latents, np.cumsum(BLOCKS)[:-1], axis=1), ahead, remembers=remembers)


def error(made, latents=LATENTS):
    """Relative error of all frames."""
    expected = whole(latents)
    return float(jnp.sqrt(jnp.mean((made - expected) ** 2) / jnp.mean(expected**2)))


def test_a_clip_in_one_call_is_the_whole_clip(strict):
    made, _ = STEP(LATENTS, None, ahead=0)
    np.testing.assert_allclose(made, whole(LATENTS), rtol=0, atol=1e-5)
    assert made.shape == (1, 12, 4, 6, 3)


def test_but_for_its_norms_a_stream_that_looks_as_far_as_the_reach_is_the_whole_clip(monkeypatch):
    known = lambda groups: Moments(jnp.float32(1), jnp.full((1, 32), 0.1), jnp.full((1, 32), 2.0))  # noqa: E731
    monkeypatch.setattr(upsampler, "_measure", known)
    monkeypatch.setattr(upsampler, "_join", lambda past, fresh: fresh)
    expected = upsample_clip(CONFIG, VARIABLES, VAE, LATENTS)
    assert CONFIG.reach == 6
    step = compile_step()
    np.testing.assert_allclose(streamed(LATENTS, CONFIG.reach, step=step), expected, rtol=0, atol=2e-5)
    assert jnp.abs(streamed(LATENTS, 2, step=step) - expected).max() > 1e-2


def test_a_norm_remembers_all_frames_so_far_and_forgets_old_ones():
    x = jnp.asarray(np.random.default_rng(1).normal(2.0, 3.0, size=(2, 40, 2, 2, 64)), jnp.float32)
    variables, carry = ClipNorm().init(jax.random.key(0), x), {}
    step = jax.jit(lambda carry, x: ClipNorm().apply({**variables, **carry}, x, mutable=["carry"]))
    for k in range(3):
        y, carry = step(carry, x[:, 4 * k : 4 * k + 4])
    expected = ClipNorm().apply(variables, x[:, :12])
    np.testing.assert_allclose(y, expected[:, 8:], rtol=0, atol=1e-5)
    assert carry["carry"]["frames"] == 12
    for k in range(3, 10):
        _, carry = step(carry, x[:, 4 * k : 4 * k + 4])
    assert carry["carry"]["frames"] == MEMORY


@pytest.mark.long
def test_the_error_against_the_whole_clip_falls_with_the_look_ahead_and_with_remembered_moments():
    blind, far = error(streamed(LATENTS, 0)), error(streamed(LATENTS, CONFIG.reach))
    assert far < 0.5 * blind
    assert far < 0.7 * error(streamed(LATENTS, CONFIG.reach, remembers=False))


def test_all_later_blocks_are_one_program_with_a_state_of_constant_shape():
    more = jax.jit(chex.assert_max_traces(upsample_next, n=1), static_argnums=(0, 5), donate_argnums=4)
    _, carry = STEP(LATENTS[:, :2], None, ahead=1)
    shapes = jax.tree.map(jnp.shape, carry)
    for _ in range(3):
        _, carry = more(CONFIG, VARIABLES, VAE, LATENTS[:, :4], carry, 1)
        assert jax.tree.map(jnp.shape, carry) == shapes


def test_the_published_reach_is_six_seconds_on_either_side():
    assert LTX23_SPATIAL_UPSAMPLER.reach == 18


def test_bfloat16_latents_are_upsampled_in_bfloat16(strict):
    assert jax.eval_shape(whole, LATENTS.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_what_cannot_be_upsampled_is_refused():
    with pytest.raises(ValueError, match="video latents have 2 channels, expected 3"):
        jax.eval_shape(LatentUpsampler(CONFIG).apply, VARIABLES, LATENTS[..., :2])
    with pytest.raises(ValueError, match="ahead=12: must be from 0 to 11"):
        upsample_next(CONFIG, VARIABLES, VAE, LATENTS, None, 12)
    both = dataclasses.replace(CONFIG, resampling=Resampling.ALL)
    with pytest.raises(ValueError, match="resampling='all': only pictures are upsampled block by block"):
        upsample_next(both, VARIABLES, VAE, LATENTS, None)
