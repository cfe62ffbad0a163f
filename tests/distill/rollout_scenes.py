"""Kinds of rollouts that stage 3 is differentiated through."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jaxtyping import Array

from omniforcing_jax.config import CrossTimestep, ModelConfig, SamplerConfig
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.layout import FUSED, PREFIX, PREFIX2
from omniforcing_jax.model.transformer import Transformer, keep_projections
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

SINKS = dataclasses.replace(tiny.SINKS, layers=2)
SIGMAS = (1.0, 0.8, 0.4, 0.0)
KEYS = jax.random.split(jax.random.key(5), tiny.BATCH)


class Scene(NamedTuple):
    """A kind of rollout."""

    config: ModelConfig
    sampler: SamplerConfig
    exits: tuple[int, ...]
    text_gradient: bool = True
    remat: Callable | None = None


def sampler(layout=PREFIX, **options) -> SamplerConfig:
    horizon = options.pop("horizon_seconds", 3)
    return SamplerConfig(sigmas=SIGMAS, layout=layout, horizon_seconds=horizon, **options)


SCENES = {
    "prefix, sinks, block 0 and a past block dropped": Scene(SINKS, sampler(window=2, pinned=0), (0, 2, 1)),
    "fused, context noise, kept noise, reference's text, layers computed again": Scene(
        tiny.TINY, sampler(FUSED, context_noise=0.1, renewal=1.0), (2, 1), text_gradient=False, remat=keep_projections
    ),
    "text and crossings at one level, two audio latents, pinned blocks beside a window": Scene(
        dataclasses.replace(tiny.MODERN, cross_timestep=CrossTimestep.CROSS),
        sampler(PREFIX2, window=1, pinned=2, scalar_sigma=0.9),
        (2, 0, 1, 1),
    ),
    "text keys per step, one exit": Scene(dataclasses.replace(tiny.MODERN, sinks=2), sampler(), (1, 1)),
}
QUICKEST = "prefix, sinks, block 0 and a past block dropped"  # to compile


def setting_of(scene: Scene) -> StaticConfig:
    return StaticConfig(scene.config, scene.sampler, (1, 2))


def contexts_of(config: ModelConfig) -> TextContexts:
    rng = np.random.default_rng(4)
    widths = [config.caption_channels or stream.width for stream in (config.video, config.audio)]
    video, audio = (jnp.asarray(rng.normal(size=(tiny.BATCH, 4, width)), jnp.float32) for width in widths)
    return TextContexts(video, audio, jnp.asarray([[0, 1, 1, 1], [1, 1, 1, 1]], jnp.int32))


def wish(clip: Streams) -> Streams:
    """A gradient that is different for every number of the clip."""
    return Streams(*(jnp.sin(3 * x) / x.size for x in clip))


def assert_same_gradient(gradient: Transformer, expected: Transformer) -> dict[str, Array]:
    """Compare gradients within the noise of float32; returns the leaves of the first by their names."""
    found, wanted = name_leaves(gradient), name_leaves(expected)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in wanted.values())
    for leaf, value in wanted.items():
        np.testing.assert_allclose(found[leaf], value, atol=1e-5 * largest, err_msg=leaf)
    return found
