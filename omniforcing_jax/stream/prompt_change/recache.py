"""Recompute the past under another prompt: clean passes that rebuild the cache from latents.

The keys and values of a block depend on the prompt of its clean pass. To change them, the clean pass is repeated with
the noise of the first time, and its result is committed into the slot of the block. The latents come from the history,
which can keep more blocks than the ring holds.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, PyTree

from omniforcing_jax.model.cache import Cache, Slots, masks_of, seen_in_ring
from omniforcing_jax.model.positions import shift_rotations
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.rollout import (
    BlockPositions,
    Network,
    PromptKV,
    StaticConfig,
    block_positions,
    clean_pass,
    commit_block,
    draw_context_noise,
)
from omniforcing_jax.stream.prompt_change.history import History


@struct.dataclass
class CommitInputs:
    """Inputs of the clean passes of past blocks, besides the network and the cache.

    Attributes:
        prompt: Text keys and values.
        keys: PRNG key of each row of the stream, [B]. Each clean pass draws the noise of its first time from them.
        history: Latents of the blocks.
    """

    prompt: PromptKV
    keys: ArrayLeaf
    history: History


@struct.dataclass
class ReplayedBlock:
    """A later block whose clean pass is repeated: what the host knows of it.

    Attributes:
        index: Its number, int32 [].
        slot: Its slot in the history, int32 [].
        in_ring: The block that each slot of the ring holds before the clean pass, int32 [ring]; -1 is none.
        positions: Positions of its tokens.
    """

    index: ArrayLeaf
    slot: ArrayLeaf
    in_ring: ArrayLeaf
    positions: BlockPositions


def blocks_to_recache(static: StaticConfig, depth: int, done: int, count: int) -> list[int]:
    """List the blocks that `count` clean passes rebuild, in order.

    The blocks of the ring are chosen first, the newest before all others, then block 0, which completes the window. The
    rest are blocks that have left the ring; their keys and values are needed on the way only.
    """
    in_ring, kept = min(static.sampler.past_blocks, done - 1), min(depth, done - 1)
    if done == 0 or count == 0:
        return []
    if count <= in_ring:
        return list(range(done - count, done))
    return [0, *range(done - min(max(in_ring, count - 1), kept), done)]


def recache(
    params: Network,
    cache: Cache,
    inputs: CommitInputs,
    count: int,
    *,
    done: int,
    static: StaticConfig,
    trace: Callable[[str, int, PyTree], None] = lambda step, block, outputs: None,
) -> Cache:
    """Rebuild the newest blocks of the cache under a prompt. The cache that was passed in is donated.

    A replayed block attends to the part of its original past that is still in the ring. Evicted blocks are missing, so
    the oldest replayed blocks see less than they did the first time. The result is exact where nothing is missing: if
    `count` covers all blocks of the stream, or block 0 and `exact_depth` later ones. Exact means the cache of a stream
    with the same latents whose commits were all made under this prompt.

    Args:
        params: The network.
        cache: The cache after `done` commits.
        inputs: The new prompt, and the keys and the latents of the stream.
        count: Number of clean passes, at most as many as there are blocks whose latents are kept.
        done: Number of blocks committed so far.
        static: Static config.
        trace: Called with "recompute", block and cache after each clean pass was dispatched.
    """
    blocks = blocks_to_recache(static, inputs.history.depth, done, count)
    for block in blocks:
        if block == 0:
            cache = _replay_first(params, cache, inputs, static)
        else:
            oldest = blocks[1] if blocks[0] == 0 else blocks[0]
            replayed = _place_block(static, cache.video, inputs.history.depth, block, oldest=oldest, done=done)
            cache = _replay_later(params, cache, inputs, replayed, static=static)
        trace("recompute", block, cache)
    return cache


def _replay_first(params: Network, cache: Cache, inputs: CommitInputs, static: StaticConfig) -> Cache:
    """Repeat the commit of block 0."""
    cache = dataclasses.replace(cache, blocks_done=jnp.zeros_like(cache.blocks_done))
    latents, positions = inputs.history.first, block_positions(static, 0)
    return commit_block(params, cache, inputs.prompt, inputs.keys, latents, positions, static=static)


def _place_block(
    static: StaticConfig, slots: Slots, depth: int, block: int, *, oldest: int, done: int
) -> ReplayedBlock:
    """Describe a block that is replayed after `oldest` .. block - 1, in a stream that has committed `done` blocks."""
    return ReplayedBlock(
        index=jnp.int32(block),
        slot=jnp.int32((block - 1) % depth),
        in_ring=jnp.asarray(blocks_in_ring(slots, done, oldest, block)),
        positions=block_positions(static, block),
    )


def blocks_in_ring(slots: Slots, done: int, oldest: int, block: int) -> Int[np.ndarray, " ring"]:
    """Return the block that each slot of the ring holds, before `block` is replayed; -1 is none that it could see.

    Args:
        slots: Division of the slots.
        done: Number of blocks committed so far.
        oldest: The first block after block 0 that was replayed; `oldest` .. block - 1 have been.
        block: The next block to replay.
    """
    held, first = np.full(slots.ring, -1, np.int32), slots.first_in_ring
    for k in [*range(max(first, done - slots.past), done), *range(max(oldest, block - slots.ring), block)]:
        held[(k - first) % slots.ring] = k
    return held


@partial(jax.jit, static_argnames="static", donate_argnames="cache")
def _replay_later(
    params: Network, cache: Cache, inputs: CommitInputs, block: ReplayedBlock, *, static: StaticConfig
) -> Cache:
    """Repeat the clean pass of a later block and commit it into the slot that it has."""
    cache = dataclasses.replace(cache, blocks_done=block.index)
    take = partial(jax.lax.dynamic_index_in_dim, index=block.slot, axis=1, keepdims=False)
    latents = jax.tree.map(take, inputs.history.later)
    noise = draw_context_noise(inputs.keys, block.index, static, block.positions)
    rings = Sites.of_keys(*(_seen(slots, block.in_ring, block.index) for slots in (cache.video, cache.audio)))
    shift = shift_rotations(static.model, block.positions.pinned_shift)
    masks = masks_of(cache, block.index, rings, shift, is_prefix=False)
    return clean_pass(params, cache, inputs.prompt, latents, noise, block.positions, static, masks)


def _seen(slots: Slots, in_ring: Int[Array, " ring"], block: Int[Array, ""]) -> Bool[Array, " S"]:
    """Let a block read block 0 as it did the first time, and older blocks of its window where they are in the ring."""
    oldest = jnp.maximum(slots.first_in_ring, block - slots.past)
    ring = (in_ring >= oldest) & (in_ring < block)
    if slots.in_place:
        ring |= jnp.arange(slots.ring) == (block - slots.first_in_ring) % slots.ring
    return jnp.concatenate([seen_in_ring(slots, block)[: slots.front], jnp.repeat(ring, slots.step)])
