"""Stage 1: few-step distillation of the bidirectional network on inputs that it simulates itself.

The few-step sampler runs from noise without gradient; the noisy input of one of its steps, drawn per sample, is what
the generator then predicts a clip from. The entry at sigma 0 is never drawn: there the prediction is its input and
carries no gradient (a defect of the reference, specs/omniforcing.md 8.2, 8).

Source: specs/omniforcing.md 7.2.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.model.whole_clip import predict_x0
from omniforcing_jax.schedule import add_noise
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


def simulate(
    params: Transformer,
    model: ModelConfig,
    noise: Streams,
    sigmas: Float[Array, " K"],
    contexts: TextContexts,
    rotaries: Rotaries,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Streams:
    """Run the few-step sampler on whole clips and keep its inputs; no gradient flows.

    Args:
      params: the generator's.
      model: what network it is.
      noise: fresh noise for every step, [M, B, T, C] and [M, B, A, E].
      sigmas: noise levels from 1 to 0, K = M + 1.
      contexts: of the prompts.
      rotaries: rotations of the whole clip.
      dtype: type to compute in.

    Returns:
      What the sampler has at every sigma, [K, B, ...]: noise first, the clip last.
    """
    params, contexts = jax.lax.stop_gradient((params, contexts))

    def step(x0: Streams, inputs: tuple[Array, Streams]) -> tuple[Streams, Streams]:
        sigma, fresh = inputs
        noisy = jax.tree.map(partial(add_noise, sigma=sigma), x0, fresh)
        levels = jnp.broadcast_to(sigma, noisy.video.shape[:1])
        return predict_x0(params, model, noisy, levels, contexts, rotaries, dtype=dtype), noisy

    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), noise)
    clip, inputs = jax.lax.scan(step, nothing, (sigmas[:-1], noise))
    return jax.tree.map(lambda rest, last: jnp.concatenate([rest, last[None]]), inputs, clip)


def draw_entry(key: Array, batch: int, sigmas: Float[Array, " K"]) -> Int[Array, " B"]:
    """Draw one entry per sample, shared by all frames of both streams; never the one at sigma 0."""
    return jax.random.randint(key, (batch,), 0, len(sigmas) - 1)


def predict_from(
    params: Transformer,
    model: ModelConfig,
    trajectory: Streams,
    entry: Int[Array, " B"],
    sigmas: Float[Array, " K"],
    contexts: TextContexts,
    rotaries: Rotaries,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
) -> Streams:
    """Predict the clip from one entry of each sample's trajectory: what the generator's loss differentiates."""
    rows = jnp.arange(len(entry))
    noisy = jax.lax.stop_gradient(jax.tree.map(lambda x: x[entry, rows], trajectory))
    return predict_x0(params, model, noisy, sigmas[entry], contexts, rotaries, dtype=dtype, remat=remat)
