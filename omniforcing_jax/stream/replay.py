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
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from omniforcing_jax.cache import Cache, Slots, readable, stand
from omniforcing_jax.config import SamplerConfig, require
from omniforcing_jax.model.place import Turn, turn_by, turning
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.nn.sight import hide
from omniforcing_jax.rollout import (
    Latents,
    Prompt,
    Setting,
    Tables,
    clean_pass,
    commit_block,
    draw_context_noise,
    make_tables,
)


@struct.dataclass
class History:
    """Latents of block 0 and of the last D later blocks; block k >= 1 lies in slot (k - 1) mod D.

    Attributes:
        first: Of block 0, [B, T, C] and [B, A, E].
        later: [B, D, T, C] and [B, D, A, E].
    """

    first: Latents
    later: Latents

    @property
    def depth(self) -> int:
        """Later blocks that are kept."""
        return self.later.video.shape[1]


def window_blocks(sampler: SamplerConfig) -> int:
    """Past blocks that a block sees at most: block 0 and the ring."""
    return 1 + sampler.past_blocks


def check_recompute(sampler: SamplerConfig, depth: int, count: int | None) -> int:
    """Return the number of clean passes that a request means: None is the whole window.

    Raises:
        ValueError: if there are more than blocks whose latents are kept.
    """
    if count is None:
        return window_blocks(sampler)
    require(0 <= count <= 1 + depth, "recompute", count, f"must be between 0 and {1 + depth}, the blocks that are kept")
    return count


def exact_depth(setting: Setting) -> int:
    """Later blocks on which anything in the ring can depend, however long the stream.

    A block reads the ring twice per layer, in self-attention and in the crossing, each time as it was for that block.
    """
    return 2 * setting.config.layers * setting.sampler.past_blocks


@partial(jax.jit, static_argnums=(0, 1, 2))
def make_history(setting: Setting, rows: int, depth: int) -> History:
    """Make the empty history of a stream of `rows` rows that keeps `depth` later blocks."""
    layout, config, per_frame = setting.sampler.layout, setting.config, setting.grid[0] * setting.grid[1]

    def zeros(shape: tuple[int, ...], frames: int, audio: int) -> Latents:
        return Latents(
            video=jnp.zeros((*shape, frames * per_frame, config.video.latent_channels), jnp.float32),
            audio=jnp.zeros((*shape, audio, config.audio.latent_channels), jnp.float32),
        )

    return History(
        first=zeros((rows,), layout.first_v, layout.first_a), later=zeros((rows, depth), layout.step_v, layout.step_a)
    )


def keep(history: History, latents: Latents, k: int) -> History:
    """Write the latents of block k into the history, in place: the one that was passed in is gone."""
    if k == 0:
        return History(latents, history.later)
    if not history.depth:
        return history
    return History(history.first, _keep_later(history.later, latents, np.int32((k - 1) % history.depth)))


@partial(jax.jit, donate_argnums=0)
def _keep_later(later: Latents, latents: Latents, slot: Int[Array, ""]) -> Latents:
    put = partial(jax.lax.dynamic_update_index_in_dim, index=slot, axis=1)
    return jax.tree.map(put, later, latents)


def blocks_to_replay(setting: Setting, depth: int, done: int, count: int) -> list[int]:
    """List the blocks that `count` clean passes rebuild, in order.

    The ring's blocks come first, the newest before all others; then block 0, which completes the window; then blocks
    that have left the ring, whose keys and values are needed on the way only.
    """
    in_ring, kept = min(setting.sampler.past_blocks, done - 1), min(depth, done - 1)
    if done == 0 or count == 0:
        return []
    if count <= in_ring:
        return list(range(done - count, done))
    return [0, *range(done - min(max(in_ring, count - 1), kept), done)]


def replay(
    params: Transformer,
    cache: Cache,
    prompt: Prompt,
    keys: Key[Array, " B"],
    history: History,
    count: int,
    *,
    done: int,
    setting: Setting,
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
        setting: What is static.
        trace: Told "recompute", block and cache after each clean pass was dispatched.
    """
    todo, sampler = blocks_to_replay(setting, history.depth, done, count), setting.sampler
    for block in todo:
        tables = make_tables(setting, block)
        if block == 0:
            cache = dataclasses.replace(cache, blocks_done=jnp.zeros_like(cache.blocks_done))
            cache = commit_block(params, cache, prompt, keys, history.first, tables, setting=setting)
        else:
            first = todo[1] if todo[0] == 0 else todo[0]
            held = held_blocks(sampler.past_blocks, done, first, block)
            slot = np.int32((block - 1) % history.depth)
            standing = turn_by(setting.config, sampler.shift_seconds(block))
            cache = _replay_later(
                *(params, cache, prompt, keys, history, tables, standing, held, np.int32(block), slot), setting=setting
            )
        trace("recompute", block, cache)
    return cache


def held_blocks(ring: int, done: int, first: int, block: int) -> Int[np.ndarray, " R"]:
    """Say which block each ring slot holds when first .. block - 1 were replayed and `block` is next; -1 is none."""
    held = np.full(ring, -1, np.int32)
    for k in [*range(max(1, done - ring), done), *range(max(first, block - ring), block)]:
        held[(k - 1) % ring] = k
    return held


@partial(jax.jit, static_argnames="setting", donate_argnames="cache")
def _replay_later(
    params: Transformer,
    cache: Cache,
    prompt: Prompt,
    keys: Key[Array, " B"],
    history: History,
    tables: Tables,
    standing: Turn,
    held: Int[Array, " R"],
    block: Int[Array, ""],
    slot: Int[Array, ""],
    *,
    setting: Setting,
) -> Cache:
    cache = stand(dataclasses.replace(cache, blocks_done=block), turning(setting.config, standing))
    latents = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 1, keepdims=False), history.later)
    noise = draw_context_noise(keys, block, setting, tables)
    return clean_pass(params, cache, prompt, latents, noise, tables, setting, _bias(cache, held, block))


def _bias(cache: Cache, held: Int[Array, " R"], block: Int[Array, ""]) -> Sites:
    video, audio = (_slot_bias(slots, held, block) for slots in (cache.video, cache.audio))
    return Sites(video_self=video, audio_self=audio, a2v=audio, v2a=video)


def _slot_bias(slots: Slots, held: Int[Array, " R"], block: Int[Array, ""]) -> Float[Array, "1 1 1 S"]:
    """Let a block read the region as at its first time, and of the ring what is older than it and in its window."""
    start, _ = readable(slots, block)
    ring = (held >= jnp.maximum(1, block - slots.ring)) & (held < block)
    seen = jnp.concatenate([jnp.arange(slots.region) >= start, jnp.repeat(ring, slots.step)])
    return hide(seen)[None, None, None]
