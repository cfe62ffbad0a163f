"""Causal DMD without a rollout: clean clips noised block by block, one masked forward, and the same losses.

Blocks see their past at whatever level was drawn there, so a student trained so never sees its own errors. It is the
cheap alternative that self-forcing is compared with. As in stage 1 the entry at sigma 0 is not drawn.

Source: OmniForcing@9efe837:ltx_distillation/dmd.py (branch causal-dmd).
"""

import jax
from jaxtyping import Array, Float

from omniforcing_jax.distill.clip_network import ClipNetwork, spread_levels
from omniforcing_jax.layout import Block
from omniforcing_jax.model.transformer import Transformer, predict
from omniforcing_jax.schedule import add_noise, to_x0
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


def draw_levels(key: Array, batch: int, blocks: int, sigmas: Float[Array, " K"]) -> Float[Array, "B k"]:
    """Draw a level from the list, without its closing 0, for every block of every sample."""
    return sigmas[jax.random.randint(key, (batch, blocks), 0, len(sigmas) - 1)]


def predict_masked(
    params: Transformer,
    clean: Streams,
    noise: Streams,
    levels: Float[Array, "B k"],
    contexts: TextContexts,
    blocks: tuple[Block, ...],
    network: ClipNetwork,
) -> Streams:
    """Predict every block of a clip from its noised self and its noised past: what the generator's loss differentiates.

    Args:
        params: The student's.
        clean: Clips to begin from, usually the teacher's.
        noise: As large as they are.
        levels: Noise level of every block; audio takes that of its block.
        contexts: Of the prompts.
        blocks: Block table of the clip.
        network: The student.

    Raises:
        ValueError: As `ClipNetwork.masked_text`.
    """
    sigmas, per_token = spread_levels(levels, blocks, clean.video.shape[1] // blocks[-1].video_end)
    noisy = jax.tree.map(add_noise, jax.lax.stop_gradient(clean), noise, per_token)
    view, text = network.masked(sigmas, blocks), network.masked_text(params, contexts)
    velocity = predict(params, network.model, noisy, view, text, dtype=network.dtype, remat=network.remat).velocity
    return jax.tree.map(to_x0, noisy, velocity, per_token)
