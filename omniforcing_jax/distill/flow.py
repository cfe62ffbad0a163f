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


def flow_loss(
    predict: Predict,
    video: Float[Array, "B T C"],
    audio: Float[Array, "B A E"],
    key: Array,
    draw: Callable[[Array, int], Float[Array, " B"]] = draw_sigma,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the predicted velocities, both streams at one noise level per sample.

    Args:
      predict: (noisy video, noisy audio, sigma [B]) -> velocities of both.
      video: clean video tokens.
      audio: clean audio tokens.
      key: spent on levels and noise.
      draw: (key, batch) -> noise levels [B].

    Returns:
      The sum of both streams' means, and each of them as metrics.

    Source: rectified flow, specs/ltx2.md 2.9.
    """
    for_sigma, for_video, for_audio = jax.random.split(key, 3)
    sigma = draw(for_sigma, video.shape[0])
    noise_v = jax.random.normal(for_video, video.shape, jnp.float32)
    noise_a = jax.random.normal(for_audio, audio.shape, jnp.float32)
    velocity_v, velocity_a = predict(
        schedule.add_noise(video, noise_v, sigma), schedule.add_noise(audio, noise_a, sigma), sigma
    )
    loss_v = jnp.mean((velocity_v - (noise_v - video)) ** 2)
    loss_a = jnp.mean((velocity_a - (noise_a - audio)) ** 2)
    return loss_v + loss_a, {"video": loss_v, "audio": loss_a}
