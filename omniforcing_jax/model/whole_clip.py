"""A whole clip at once, everyone seeing everyone: what a teacher, its critic and a clip from noise ask the network."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.transformer import NO_PERTURBATION, Transformer, predict, text_kv
from omniforcing_jax.model.view import bidirectional, one_sigma
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.text.contexts import TextContexts

Streams = tuple[Float[Array, "B T C"], Float[Array, "B A E"]]


def predict_velocity(
    params: Transformer,
    config: ModelConfig,
    noisy: Streams,
    sigma: Float[Array, " B"],
    contexts: TextContexts,
    rotaries: Rotaries,
    perturbation: Perturbation = NO_PERTURBATION,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
) -> Streams:
    """Predict the velocity of both streams, bidirectional, one noise level per sample.

    Args:
      params: the network's.
      config: what network it is.
      noisy: tokens of video and audio.
      sigma: their noise level.
      contexts: text features; their keys and values are made here.
      rotaries: rotations of the whole clip.
      perturbation: what to leave out, for guidance.
      dtype: type to compute in.
      remat: wraps the scan over layers.
    """
    text = text_kv(params, *contexts, sigma=sigma, dtype=dtype)
    view = bidirectional(config, rotaries, one_sigma(sigma))
    prediction = predict(params, config, *noisy, view, text, perturbation=perturbation, dtype=dtype, remat=remat)
    return prediction.video, prediction.audio


def predict_x0(
    params: Transformer, config: ModelConfig, noisy: Streams, sigma: Float[Array, " B"], *rest, **options
) -> Streams:
    """Predict the clean clip; arguments as `predict_velocity`."""
    velocity = predict_velocity(params, config, noisy, sigma, *rest, **options)
    return to_x0(noisy[0], velocity[0], sigma), to_x0(noisy[1], velocity[1], sigma)
