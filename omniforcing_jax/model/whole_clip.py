"""A whole clip at once, bidirectional: the predictions of a teacher, of its critic, and of a clip sampler."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.transformer import NO_PERTURBATION, Transformer, predict, text_kv
from omniforcing_jax.model.view import Sigmas, bidirectional, one_sigma
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


def predict_velocity(
    params: Transformer,
    config: ModelConfig,
    noisy: Streams,
    sigma: Float[Array, " B"],
    contexts: TextContexts,
    rotaries: Rotaries,
    perturbation: Perturbation = NO_PERTURBATION,
    *,
    video_sigma: Float[Array, "B U"] | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
) -> Streams:
    """Predict the velocity of both streams, bidirectional, one noise level per sample.

    Args:
        params: The network's weights.
        config: The network's config.
        noisy: Tokens of both streams, [B, T, C] and [B, A, C].
        sigma: Their noise level.
        contexts: Text features, projected here to keys and values.
        rotaries: Rotations of the whole clip.
        perturbation: What to leave out, for guidance.
        video_sigma: Noise levels of groups of video tokens (`Sigmas`), where some are given; None is `sigma`.
        dtype: Type to compute in.
        remat: Wraps the body of the scan over layers.
    """
    text = text_kv(params, *contexts, sigma=sigma, dtype=dtype)
    sigmas = one_sigma(sigma)
    if video_sigma is not None:
        sigmas = Sigmas(video=video_sigma, audio=sigma[:, None], scalar_video=sigma, scalar_audio=sigma)
    view = bidirectional(config, rotaries, sigmas)
    return predict(params, config, noisy, view, text, perturbation=perturbation, dtype=dtype, remat=remat).velocity


def predict_x0(
    params: Transformer, config: ModelConfig, noisy: Streams, sigma: Float[Array, " B"], *rest, **options
) -> Streams:
    """Predict the clean clip; arguments as `predict_velocity`."""
    velocity = predict_velocity(params, config, noisy, sigma, *rest, **options)
    levels = options.get("video_sigma")
    own = sigma if levels is None else jnp.repeat(levels, noisy.video.shape[1] // levels.shape[1], axis=1)
    return Streams(to_x0(noisy.video, velocity.video, own), to_x0(noisy.audio, velocity.audio, sigma))
