"""Latents of past blocks, kept so that their keys and values can be recomputed under another prompt.

Latents are small, a thousandth of their keys and values, so more blocks can be kept than the ring holds.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require


@struct.dataclass
class History:
    """Latents of block 0 and of the last D later blocks; block k >= 1 lies in slot (k - 1) mod D.

    Attributes:
        first: Latents of block 0, [B, T, C] and [B, A, C].
        later: Latents of later blocks, [B, D, T, C] and [B, D, A, C].
    """

    first: Streams
    later: Streams

    @property
    def depth(self) -> int:
        """Number of later blocks that are kept."""
        return self.later.video.shape[1]


def window_blocks(sampler: SamplerConfig) -> int:
    """Return how many past blocks a block attends to at most: block 0 and the ring."""
    return 1 + sampler.past_blocks


def check_recompute(sampler: SamplerConfig, depth: int, count: int | None) -> int:
    """Return the number of clean passes for `recompute=count`: None is the whole window, or 0 where that cannot be.

    Raises:
        ValueError: If there are more than blocks whose latents are kept, or any where more than block 0 is pinned.
    """
    if count is None:
        return window_blocks(sampler) if sampler.pinned <= 1 else 0
    rule = f"must be 0: {sampler.pinned} blocks are pinned, and only block 0's latents are kept for good"
    require(count == 0 or sampler.pinned <= 1, "recompute", count, rule)
    rule = f"must be between 0 and {1 + depth}, the number of blocks whose latents are kept"
    require(0 <= count <= 1 + depth, "recompute", count, rule)
    return count


def exact_depth(static: StaticConfig) -> int:
    """Return how many later blocks the content of the ring can depend on, however long the stream.

    A block reads the ring twice per layer, in self-attention and in the crossing. Each time it reads the ring of its
    own past, so the dependence reaches one ring further back.
    """
    return 2 * static.model.layers * static.sampler.past_blocks


@partial(jax.jit, static_argnums=(0, 1, 2))
def make_history(static: StaticConfig, rows: int, depth: int) -> History:
    """Make the empty history of a stream with `rows` rows that keeps `depth` later blocks."""
    layout, config, per_frame = static.sampler.layout, static.model, static.grid[0] * static.grid[1]

    def zeros(shape: tuple[int, ...], frames: int, audio: int) -> Streams:
        return Streams(
            video=jnp.zeros((*shape, frames * per_frame, config.video.latent_channels), jnp.float32),
            audio=jnp.zeros((*shape, audio, config.audio.latent_channels), jnp.float32),
        )

    return History(
        first=zeros((rows,), layout.first_v, layout.first_a), later=zeros((rows, depth), layout.step_v, layout.step_a)
    )


def record_block(history: History, latents: Streams, k: int) -> History:
    """Write the latents of block k into the history. The history that was passed in is donated."""
    if k == 0:
        return History(latents, history.later)
    if not history.depth:
        return history
    return History(history.first, _keep_later(history.later, latents, np.int32((k - 1) % history.depth)))


@partial(jax.jit, donate_argnums=0)
def _keep_later(later: Streams, latents: Streams, slot: Int[Array, ""]) -> Streams:
    put = partial(jax.lax.dynamic_update_index_in_dim, index=slot, axis=1)
    return jax.tree.map(put, later, latents)
