"""The ring cache of a stream: static shapes and one block counter; denoise steps read it, commits write it.

Every site has slots [L, B, S, N, H] in the order block 0 | sinks | ring of R past blocks; block k >= 1 is in ring slot
(k - 1) mod R. `blocks_done` alone decides which slots may be read. Keys are stored rotated, at the seconds of their
block. Pinned keys (sinks, and block 0 where it is pinned) are stored a second time at their original positions, and are
shifted from there before each block.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float, Int

from omniforcing_jax.config import ModelConfig, SamplerConfig, StreamConfig
from omniforcing_jax.nn.attention import KV, Sites
from omniforcing_jax.nn.mask import mask_bias
from omniforcing_jax.nn.rope import Rotary, rotate
from omniforcing_jax.parallel.sharding import constrain, mesh_in_use
from omniforcing_jax.parallel.spec import ArrayLeaf


@dataclasses.dataclass(frozen=True)
class Slots:
    """How the slots of one stream's keys are divided, in tokens.

    Attributes:
        first: Tokens of block 0.
        sinks: Sink tokens.
        step: Tokens of every later block.
        ring: R, the past blocks that are kept besides block 0.
        pinned: Tokens that are never evicted: [first + sinks - pinned, first + sinks).
    """

    first: int
    sinks: int
    step: int
    ring: int
    pinned: int

    @property
    def region(self) -> int:
        """Tokens of block 0 and the sinks."""
        return self.first + self.sinks

    @property
    def total(self) -> int:
        """All slots."""
        return self.region + self.ring * self.step

    @property
    def keeps_block_0(self) -> bool:
        """Whether block 0 is pinned."""
        return self.pinned == self.region


@struct.dataclass
class Cache:
    """The keys and values of a stream's past blocks.

    Attributes:
        past: Sites of KV [L, B, S, N, H], read by attention.
        pinned: Sites of pinned keys [L, B, pinned, N, H] at their original positions, or None where a site has none.
        blocks_done: Int32 [], blocks committed so far.
        video: Division of the slots of video keys (video_self, v2a).
        audio: Division of the slots of audio keys (audio_self, a2v).
    """

    past: Sites
    pinned: Sites
    blocks_done: ArrayLeaf
    video: Slots = struct.field(pytree_node=False)
    audio: Slots = struct.field(pytree_node=False)

    @property
    def slots(self) -> Sites:
        """The division of each site's slots."""
        return Sites.of_keys(self.video, self.audio)

    @property
    def reads_prefix(self) -> bool:
        """Whether the readable slots always come first, because block 0 is never evicted from their front."""
        return self.video.keeps_block_0 and self.audio.keeps_block_0


def empty_cache(
    config: ModelConfig, sampler: SamplerConfig, grid: tuple[int, int], batch: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Make the cache of `batch` streams without any block, on a latent grid of (rows, columns)."""
    layout, pin, ring = sampler.layout, sampler.pin_prefix, sampler.past_blocks
    per_frame = grid[0] * grid[1]
    first_v = layout.first_v * per_frame
    video = Slots(first_v, 0, layout.step_v * per_frame, ring, first_v if pin else 0)
    audio = Slots(layout.first_a, config.sinks, layout.step_a, ring, config.sinks + (layout.first_a if pin else 0))
    slots = Sites.of_keys(video, audio)
    heads = Sites(video_self=config.video, audio_self=config.audio, a2v=config.audio, v2a=config.audio)

    def zeros(count: int, stream: StreamConfig) -> Array:
        return _on_mesh(jnp.zeros((config.layers, batch, count, stream.heads, stream.head_size), dtype))

    return Cache(
        past=jax.tree.map(lambda s, h: KV(k=zeros(s.total, h), v=zeros(s.total, h)), slots, heads),
        pinned=jax.tree.map(lambda s, h: zeros(s.pinned, h) if s.pinned else None, slots, heads),
        blocks_done=jnp.zeros((), jnp.int32),
        video=video,
        audio=audio,
    )


def put_cache(cache: Cache) -> Cache:
    """Move a cache from the host to the device or, under a mesh, to the shardings that commits produce."""
    return jax.device_put(cache) if mesh_in_use() is None else _cut(cache)


@jax.jit
def _cut(cache: Cache) -> Cache:
    past, pinned = jax.tree.map(_on_mesh, (cache.past, cache.pinned))
    return dataclasses.replace(cache, past=past, pinned=pinned)


def past_bias(cache: Cache) -> Sites:
    """Bias for the scores of every slot, so that the next block reads only the blocks that it may see.

    The readable slots are one range [start, stop). It grows while the ring fills, and an unpinned block 0 drops off its
    front once it is out of the window.
    """
    return Sites.of_keys(*(_slot_bias(slots, cache.blocks_done) for slots in (cache.video, cache.audio)))


def readable_range(slots: Slots, blocks_done: ArrayLeaf) -> tuple[Int[Array, ""] | int, Int[Array, ""]]:
    """Range [start, stop) of the slots that the next block may read."""
    start = 0 if slots.keeps_block_0 else jnp.where(blocks_done > slots.ring, slots.first, 0)
    filled = jnp.clip(blocks_done - 1, 0, slots.ring)
    return start, jnp.where(blocks_done > 0, slots.region + filled * slots.step, 0)


def _slot_bias(slots: Slots, blocks_done: ArrayLeaf) -> Float[Array, "1 1 1 S"]:
    start, stop = readable_range(slots, blocks_done)
    index = jnp.arange(slots.total)
    return mask_bias((index >= start) & (index < stop))[None, None, None]


@jax.named_scope("commit")
def commit(cache: Cache, fresh: Sites, shift: Sites | None = None) -> Cache:
    """Write a block's K/V into the cache, advance the block counter, and re-anchor the pinned keys for the next block.

    Donate the cache: then nothing is copied. The number of tokens tells block 0 from later blocks.

    Args:
        cache: The cache.
        fresh: Keys and values from the block's clean pass (`Prediction.fresh`).
        shift: Rotations that move pinned keys from their original positions to those of the next block
            (`positions.shift_rotations`), one row per site. None leaves the pinned keys where they are.

    Raises:
        ValueError: The tokens are neither those of block 0 nor those of a later block.
    """
    if _is_first(cache, fresh):
        regions = jax.tree.map(_sinks_last, cache.slots, fresh)
        past = jax.tree.map(lambda _, old, new: _write(old, new, 0), cache.slots, cache.past, regions)
        pinned = jax.tree.map(_pinned_keys, cache.slots, cache.past, regions)
    else:
        slot = cache.blocks_done - 1
        past = jax.tree.map(lambda s, old, new: _write_in_ring(s, old, new, slot), cache.slots, cache.past, fresh)
        pinned = cache.pinned
    written = dataclasses.replace(cache, past=past, pinned=pinned, blocks_done=cache.blocks_done + 1)
    return written if shift is None else reanchor_pinned(written, shift)


def reanchor_pinned(cache: Cache, shift: Sites) -> Cache:
    """Overwrite the pinned slots with the pinned keys, shifted from their original positions; one row per site."""

    def reanchor(slots: Slots, past: KV, pinned: Array | None, shift: Rotary) -> KV:
        if pinned is None:
            return past
        return KV(k=_put(past.k, rotate(pinned, shift), slots.region - slots.pinned), v=past.v)

    return dataclasses.replace(cache, past=jax.tree.map(reanchor, cache.slots, cache.past, cache.pinned, shift))


def _is_first(cache: Cache, fresh: Sites) -> bool:
    """Tell block 0 from a later block by the video tokens, whose numbers always differ."""
    tokens = fresh.video_self.k.shape[2], fresh.audio_self.k.shape[2]
    block_0, later = (cache.video.region, cache.audio.region), (cache.video.step, cache.audio.step)
    if tokens not in (block_0, later):
        raise ValueError(f"fresh: {tokens} tokens, but block 0 has {block_0} and every later block {later}")
    return tokens == block_0


def _sinks_last(slots: Slots, fresh: KV) -> KV:
    """Move the sinks of block 0 from its front to its back."""
    return jax.tree.map(lambda x: jnp.roll(x, -slots.sinks, axis=2), fresh)


def _pinned_keys(slots: Slots, past: KV, region: KV) -> Array | None:
    """Cut out the keys that are never evicted, in the cache's type."""
    if not slots.pinned:
        return None
    return _on_mesh(region.k.astype(past.k.dtype)[:, :, slots.region - slots.pinned :])


def _write_in_ring(slots: Slots, past: KV, fresh: KV, index: Int[Array, ""]) -> KV:
    """Write later block `index` + 1 into its ring slot; without a ring, drop it."""
    return _write(past, fresh, slots.region + index % slots.ring * slots.step) if slots.ring else past


def _write(past: KV, fresh: KV, start: Int[Array, ""] | int) -> KV:
    return jax.tree.map(lambda old, new: _put(old, new, start), past, fresh)


def _put(old: ArrayLeaf, new: ArrayLeaf, start: Int[Array, ""] | int) -> Array:
    return _on_mesh(jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=2))


def _on_mesh(slots: Array) -> Array:
    """Shard slots [L, B, S, N, H] by batch and heads where there is a mesh."""
    return constrain(slots, None, "batch", None, "heads", None)
