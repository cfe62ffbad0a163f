"""Stage 1: few-step distillation of the bidirectional network on inputs that it simulates itself.

The few-step sampler runs from noise without gradient. The generator then predicts a clip from the noisy input of one of
its steps, drawn per sample. The entry at sigma 0 is never drawn: there the prediction is its input and carries no
gradient, which the reference overlooks.

Source: OmniForcing (arXiv 2603.11647), stage 1; OmniForcing@9c25f15:ltx_distillation/dmd.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omniforcing_jax.distill.clip_network import ClipNetwork
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.schedule import add_noise
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


def simulate(
    params: Transformer, noise: Streams, sigmas: Float[Array, " K"], contexts: TextContexts, network: ClipNetwork
) -> Streams:
    """Run the few-step sampler on whole clips and keep its inputs; no gradient flows.

    Args:
        params: The generator's.
        noise: Fresh noise for every step, [M, B, T, C] and [M, B, A, E].
        sigmas: Noise levels from 1 to 0, K = M + 1.
        contexts: Of the prompts.
        network: The generator.

    Returns:
        What the sampler has at every sigma, [K, B, ...]: noise first, the clip last.
    """
    params, contexts = jax.lax.stop_gradient((params, contexts))

    def step(x0: Streams, inputs: tuple[Array, Streams]) -> tuple[Streams, Streams]:
        sigma, fresh = inputs
        noisy = jax.tree.map(lambda x, n: add_noise(x, n, sigma), x0, fresh)
        return network.x0(params, noisy, jnp.broadcast_to(sigma, noisy.video.shape[:1]), contexts), noisy

    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), noise)
    clip, inputs = jax.lax.scan(step, nothing, (sigmas[:-1], noise))
    return jax.tree.map(lambda rest, last: jnp.concatenate([rest, last[None]]), inputs, clip)


def draw_entry(key: Array, batch: int, sigmas: Float[Array, " K"]) -> Int[Array, " B"]:
    """Draw one entry per sample, shared by all frames of both streams; never the one at sigma 0."""
    return jax.random.randint(key, (batch,), 0, len(sigmas) - 1)


def predict_from(
    params: Transformer,
    trajectory: Streams,
    entry: Int[Array, " B"],
    sigmas: Float[Array, " K"],
    contexts: TextContexts,
    network: ClipNetwork,
) -> Streams:
    """Predict the clip from one entry of each sample's trajectory: what the generator's loss differentiates."""
    rows = jnp.arange(len(entry))
    noisy = jax.lax.stop_gradient(jax.tree.map(lambda x: x[entry, rows], trajectory))
    return network.x0(params, noisy, sigmas[entry], contexts)
