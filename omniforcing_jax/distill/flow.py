"""Flow matching: how a bidirectional teacher is trained from data, and a critic from its generator's clips."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax.schedule import add_noise
from omniforcing_jax.streams import Streams


def draw_sigma(
    key: Array, batch: int, *, mean: float = 0.8, spread: float = 1.2, uniform: float = 0.1
) -> Float[Array, " B"]:
    """Draw noise levels: a logit-normal, mixed with a uniform part so that no level is left out.

    The normal draws of a batch are stratified, one from each B-th of the distribution, because the loss differs
    far more between levels than between clips. `mean` is the logit of the median level.

    Source: LTX-2's trainer draws from a shifted logit-normal with a tenth of uniform draws.
    """
    for_normal, for_uniform, for_choice = jax.random.split(key, 3)
    strata = (jnp.arange(batch) + jax.random.uniform(for_normal, (batch,), minval=1e-6, maxval=1 - 1e-6)) / batch
    normal = jax.nn.sigmoid(mean + spread * jax.scipy.special.ndtri(strata))
    flat = jax.random.uniform(for_uniform, (batch,), minval=1e-3, maxval=1.0)
    return jnp.where(jax.random.uniform(for_choice, (batch,)) < uniform, flat, normal)


def noise_like(keys: Sequence[Array] | Array, clip: Streams) -> Streams:
    """Draw noise for both streams of a clip, each from its key."""
    for_video, for_audio = keys
    return jax.tree.map(
        lambda key, x: jax.random.normal(key, x.shape, jnp.float32), Streams(for_video, for_audio), clip
    )


def flow_error(
    velocity: Streams, clean: Streams, noise: Streams, weights: tuple[float, float] = (1.0, 1.0)
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of predicted velocities of video and audio: their weighted sum, and each as a metric."""
    errors = jax.tree.map(lambda v, x, n: jnp.mean((v - (n - x)) ** 2), velocity, clean, noise)
    return weights[0] * errors.video + weights[1] * errors.audio, {"video": errors.video, "audio": errors.audio}


def flow_loss(
    predict: Callable[[Streams, Array], Streams],
    clip: Streams,
    key: Array,
    draw: Callable[[Array, int], Float[Array, " B"]] = draw_sigma,
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the predicted velocities, both streams at one noise level per sample.

    Args:
        predict: (noisy clip, sigma [B]) -> velocities.
        clip: Clean tokens, [B, T, C] and [B, A, E].
        key: Spent on levels and noise.
        draw: (key, batch) -> noise levels [B].
        weights: Of video and audio.

    Returns:
        The weighted sum of both streams' means, and each of them as metrics.

    Source: rectified flow, which LTX-2 is trained by.
    """
    for_sigma, *for_noise = jax.random.split(key, 3)
    sigma = draw(for_sigma, clip.video.shape[0])
    noise = noise_like(for_noise, clip)
    noisy = jax.tree.map(lambda x, n: add_noise(x, n, sigma), clip, noise)
    return flow_error(predict(noisy, sigma), clip, noise, weights)
