"""The past under another prompt: latents kept beside the ring, and clean passes that rebuild the ring from them.

A block's keys and values depend on the prompt of its clean pass. To change them, the block is shown to the network once
more, with the noise that its own commit had, and committed into the slot that it has. Latents are small (a thousandth
of their keys and values), so more blocks can be kept than the ring holds.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from omniforcing_jax.model.cache import Cache, Slots, readable_range, reanchor_pinned
from omniforcing_jax.model.positions import Shift, shift_phases, shift_rotations
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.nn.mask import mask_bias
from omniforcing_jax.rollout import (
    BlockPositions,
    PromptKV,
    StaticConfig,
    block_positions,
    clean_pass,
    commit_block,
    draw_context_noise,
)
from omniforcing_jax.stream.prompt_change.history import History


def blocks_to_recache(static: StaticConfig, depth: int, done: int, count: int) -> list[int]:
    """List the blocks that `count` clean passes rebuild, in order.

    The ring's blocks come first, the newest before all others; then block 0, which completes the window; then blocks
    that have left the ring, whose keys and values are needed on the way only.
    """
    in_ring, kept = min(static.sampler.past_blocks, done - 1), min(depth, done - 1)
    if done == 0 or count == 0:
        return []
    if count <= in_ring:
        return list(range(done - count, done))
    return [0, *range(done - min(max(in_ring, count - 1), kept), done)]


def recache(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    history: History,
    count: int,
    *,
    done: int,
    static: StaticConfig,
    trace: Callable[[str, int, PyTree], None] = lambda step, block, outputs: None,
) -> Cache:
    """Rebuild the newest blocks of the cache under a prompt; the cache that was passed in is gone.

    A replayed block reads what is in the ring of the past that it had, older blocks as they are. What has left the ring
    is missing, so that the oldest replayed blocks see less than they once did, as at the beginning of a clip. The
    result is just what commits under this prompt would have made of the same latents where nothing is missing: where
    `count` is all blocks that there are, or block 0 and `exact_depth` later ones.

    Args:
        params: The network.
        cache: After `done` commits.
        prompt: The new one.
        keys: Of the stream, so that each clean pass has the noise of its first time.
        history: Holds the latents of these blocks.
        count: Clean passes; as many as there are blocks to show.
        done: Blocks committed so far.
        static: What is static.
        trace: Told "recompute", block and cache after each clean pass was dispatched.
    """
    todo, sampler = blocks_to_recache(static, history.depth, done, count), static.sampler
    for block in todo:
        positions = block_positions(static, block)
        if block == 0:
            cache = dataclasses.replace(cache, blocks_done=jnp.zeros_like(cache.blocks_done))
            cache = commit_block(params, cache, prompt, keys, history.first, positions, static=static)
        else:
            first = todo[1] if todo[0] == 0 else todo[0]
            held = held_blocks(sampler.past_blocks, done, first, block)
            slot = np.int32((block - 1) % history.depth)
            shift = shift_phases(static.model, sampler.shift_seconds(block))
            cache = _replay_later(
                *(params, cache, prompt, keys, history, positions, shift, held, np.int32(block), slot), static=static
            )
        trace("recompute", block, cache)
    return cache


def held_blocks(ring: int, done: int, first: int, block: int) -> Int[np.ndarray, " R"]:
    """Say which block each ring slot holds when first .. block - 1 were replayed and `block` is next; -1 is none."""
    held = np.full(ring, -1, np.int32)
    for k in [*range(max(1, done - ring), done), *range(max(first, block - ring), block)]:
        held[(k - 1) % ring] = k
    return held


@partial(jax.jit, static_argnames="static", donate_argnames="cache")
def _replay_later(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    history: History,
    positions: BlockPositions,
    shift: Shift,
    held: Int[Array, " R"],
    block: Int[Array, ""],
    slot: Int[Array, ""],
    *,
    static: StaticConfig,
) -> Cache:
    cache = reanchor_pinned(dataclasses.replace(cache, blocks_done=block), shift_rotations(static.model, shift))
    latents = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 1, keepdims=False), history.later)
    noise = draw_context_noise(keys, block, static, positions)
    return clean_pass(params, cache, prompt, latents, noise, positions, static, _bias(cache, held, block))


def _bias(cache: Cache, held: Int[Array, " R"], block: Int[Array, ""]) -> Sites:
    video, audio = (_slot_bias(slots, held, block) for slots in (cache.video, cache.audio))
    return Sites(video_self=video, audio_self=audio, a2v=audio, v2a=video)


def _slot_bias(slots: Slots, held: Int[Array, " R"], block: Int[Array, ""]) -> Float[Array, "1 1 1 S"]:
    """Let a block read the region as at its first time, and of the ring what is older than it and in its window."""
    start, _ = readable_range(slots, block)
    ring = (held >= jnp.maximum(1, block - slots.ring)) & (held < block)
    seen = jnp.concatenate([jnp.arange(slots.region) >= start, jnp.repeat(ring, slots.step)])
    return mask_bias(seen)[None, None, None]
