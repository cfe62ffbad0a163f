"""Flow matching: how a bidirectional teacher is trained from data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax import schedule

Predict = Callable[[Array, Array, Array], tuple[Array, Array]]


def draw_sigma(
    key: Array, batch: int, *, mean: float = 0.8, spread: float = 1.2, uniform: float = 0.1
) -> Float[Array, " B"]:
    """Draw noise levels: a logit-normal, mixed with a uniform part so that no level is left out.

    The normal draws of a batch are stratified, one from each B-th of the distribution, because the loss differs
    far more between levels than between clips. `mean` is the logit of the median level.

    Source: LTX-2's trainer draws from a shifted logit-normal with a tenth of uniform draws (specs/ltx2.md 2.9).
    """
    for_normal, for_uniform, for_choice = jax.random.split(key, 3)
    strata = (jnp.arange(batch) + jax.random.uniform(for_normal, (batch,), minval=1e-6, maxval=1 - 1e-6)) / batch
    normal = jax.nn.sigmoid(mean + spread * jax.scipy.special.ndtri(strata))
    flat = jax.random.uniform(for_uniform, (batch,), minval=1e-3, maxval=1.0)
    return jnp.where(jax.random.uniform(for_choice, (batch,)) < uniform, flat, normal)


def flow_error(
    velocity: tuple[Array, Array],
    clean: tuple[Array, Array],
    noise: tuple[Array, Array],
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of predicted velocities of video and audio: their weighted sum, and each as a metric."""
    loss_v, loss_a = (jnp.mean((v - (n - x)) ** 2) for v, x, n in zip(velocity, clean, noise, strict=True))
    return weights[0] * loss_v + weights[1] * loss_a, {"video": loss_v, "audio": loss_a}


def flow_loss(
    predict: Predict,
    video: Float[Array, "B T C"],
    audio: Float[Array, "B A E"],
    key: Array,
    draw: Callable[[Array, int], Float[Array, " B"]] = draw_sigma,
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the predicted velocities, both streams at one noise level per sample.

    Args:
      predict: (noisy video, noisy audio, sigma [B]) -> velocities of both.
      video: clean video tokens.
      audio: clean audio tokens.
      key: spent on levels and noise.
      draw: (key, batch) -> noise levels [B].
      weights: of video and audio.

    Returns:
      The weighted sum of both streams' means, and each of them as metrics.

    Source: rectified flow, specs/ltx2.md 2.9.
    """
    for_sigma, for_video, for_audio = jax.random.split(key, 3)
    sigma = draw(for_sigma, video.shape[0])
    noise_v = jax.random.normal(for_video, video.shape, jnp.float32)
    noise_a = jax.random.normal(for_audio, audio.shape, jnp.float32)
    noisy = schedule.add_noise(video, noise_v, sigma), schedule.add_noise(audio, noise_a, sigma)
    return flow_error(predict(*noisy, sigma), (video, audio), (noise_v, noise_a), weights)
