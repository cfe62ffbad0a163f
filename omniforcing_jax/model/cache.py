"""The ring cache of a stream: static shapes, one block clock, read by denoise steps, written by commits.

Every site has slots [L, B, S, N, H] in the order block 0 | sinks | ring of R past blocks; block k >= 1
lies in ring slot (k - 1) mod R. Which slots may be read follows from `blocks_done` alone. Keys rest
rotated at the seconds they were made for; pinned keys (sinks, and block 0 where it is pinned) are
kept a second time at their first place, and turned from there before each block.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.config import ModelConfig, SamplerConfig, StreamConfig
from omniforcing_jax.nn.attention import KV, Sites
from omniforcing_jax.nn.mask import mask_bias
from omniforcing_jax.nn.rope import Rotary, rotate
from omniforcing_jax.parallel.sharding import constrain, mesh_in_use
from omniforcing_jax.parallel.spec import Leaf


class Slots(NamedTuple):
    """How one stream's slots are divided, in tokens."""

    first: int  # block 0
    sinks: int
    step: int  # every later block
    ring: int  # R: past blocks besides block 0
    pinned: int  # tokens that are never evicted: [first + sinks - pinned, first + sinks)

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
    """What a stream remembers of its blocks.

    Attributes:
      past: Sites of KV [L, B, S, N, H], what attention reads.
      pinned: Sites of pinned keys [L, B, pinned, N, H] at their first place, or None where a site has none.
      blocks_done: int32 [], blocks committed so far.
      video, audio: division of the slots that hold video (video_self, v2a) and audio (audio_self, a2v).
    """

    past: Sites
    pinned: Sites
    blocks_done: Leaf
    video: Slots = struct.field(pytree_node=False)
    audio: Slots = struct.field(pytree_node=False)

    @property
    def reads_prefix(self) -> bool:
        """Whether the slots that the next block may read always come first: block 0 never drops off their front."""
        return self.video.keeps_block_0 and self.audio.keeps_block_0


def empty_cache(
    config: ModelConfig, sampler: SamplerConfig, grid: tuple[int, int], batch: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Make the cache of a stream of `batch` rows that has no block yet, on a latent grid of (rows, columns)."""
    layout, pin, ring = sampler.layout, sampler.pin_prefix, sampler.past_blocks
    per_frame = grid[0] * grid[1]
    first_v = layout.first_v * per_frame
    video = Slots(first_v, 0, layout.step_v * per_frame, ring, first_v if pin else 0)
    audio = Slots(layout.first_a, config.sinks, layout.step_a, ring, config.sinks + (layout.first_a if pin else 0))

    def zeros(slots: int, stream: StreamConfig) -> Array:
        return _on_mesh(jnp.zeros((config.layers, batch, slots, stream.heads, stream.head_size), dtype))

    def kv(slots: int, stream: StreamConfig) -> KV:
        return KV(k=zeros(slots, stream), v=zeros(slots, stream))

    def pinned(slots: int, stream: StreamConfig) -> Array | None:
        return zeros(slots, stream) if slots else None

    return Cache(
        past=Sites(
            video_self=kv(video.total, config.video),
            audio_self=kv(audio.total, config.audio),
            a2v=kv(audio.total, config.audio),
            v2a=kv(video.total, config.audio),
        ),
        pinned=Sites(
            video_self=pinned(video.pinned, config.video),
            audio_self=pinned(audio.pinned, config.audio),
            a2v=pinned(audio.pinned, config.audio),
            v2a=pinned(video.pinned, config.audio),
        ),
        blocks_done=jnp.zeros((), jnp.int32),
        video=video,
        audio=audio,
    )


def put_cache(cache: Cache) -> Cache:
    """Bring a cache from the host to the device or, where a mesh is set, to where commits leave it."""
    return jax.device_put(cache) if mesh_in_use() is None else _cut(cache)


@jax.jit
def _cut(cache: Cache) -> Cache:
    past, pinned = jax.tree.map(_on_mesh, (cache.past, cache.pinned))
    return dataclasses.replace(cache, past=past, pinned=pinned)


def past_bias(cache: Cache) -> Sites:
    """What to add to the scores of every slot so that the next block reads just the blocks it may see.

    The readable slots are one range [start, stop): it grows while the ring fills, and an unpinned block 0
    drops off its front once it is out of the window.
    """
    video, audio = (_slot_bias(slots, cache.blocks_done) for slots in (cache.video, cache.audio))
    return Sites(video_self=video, audio_self=audio, a2v=audio, v2a=video)


def readable_range(slots: Slots, blocks_done: Leaf) -> tuple[Leaf, Leaf]:
    """Range [start, stop) of the slots that the next block may read."""
    start = 0 if slots.keeps_block_0 else jnp.where(blocks_done > slots.ring, slots.first, 0)
    filled = jnp.clip(blocks_done - 1, 0, slots.ring)
    return start, jnp.where(blocks_done > 0, slots.region + filled * slots.step, 0)


def _slot_bias(slots: Slots, blocks_done: Leaf) -> Float[Array, "1 1 1 S"]:
    start, stop = readable_range(slots, blocks_done)
    index = jnp.arange(slots.total)
    return mask_bias((index >= start) & (index < stop))[None, None, None]


def commit(cache: Cache, fresh: Sites, shift: Sites | None = None) -> Cache:
    """Write a block's keys and values into their slots, count it, and stand the pinned keys for the next block.

    Donate the cache: then nothing is copied. Block 0 is told from later blocks by its number of tokens.

    Args:
      cache: the cache.
      fresh: keys and values that the block's clean pass gave (`Prediction.fresh`).
      shift: rotations from the first place of pinned keys to where the next block wants them (`place.turning`),
        one row per site; None leaves them where they are.

    Raises:
      ValueError: if the tokens are neither those of block 0 nor those of a later block.
    """
    first = _is_first(cache, fresh)
    slots = Sites(video_self=cache.video, audio_self=cache.audio, a2v=cache.audio, v2a=cache.video)
    past, pinned = {}, {}
    for name in ("video_self", "audio_self", "a2v", "v2a"):
        site, new, old = (getattr(sites, name) for sites in (slots, fresh, cache.past))
        past[name], pinned[name] = old, getattr(cache.pinned, name)
        if first:
            past[name], pinned[name] = _put_first(site, old, new)
        elif site.ring:
            past[name] = _write(old, new, site.region + (cache.blocks_done - 1) % site.ring * site.step)
    written = Cache(Sites(**past), Sites(**pinned), cache.blocks_done + 1, cache.video, cache.audio)
    return written if shift is None else reanchor_pinned(written, shift)


def reanchor_pinned(cache: Cache, shift: Sites) -> Cache:
    """Stand the pinned keys where a block wants them: turned from their first place, one row per site."""
    slots = Sites(video_self=cache.video, audio_self=cache.audio, a2v=cache.audio, v2a=cache.video)
    past = {}
    for name in ("video_self", "audio_self", "a2v", "v2a"):
        site, old, pinned = (getattr(sites, name) for sites in (slots, cache.past, cache.pinned))
        past[name] = old if pinned is None else _stand(site, old, pinned, getattr(shift, name))
    return dataclasses.replace(cache, past=Sites(**past))


def _is_first(cache: Cache, fresh: Sites) -> bool:
    """Tell block 0 from a later block by the video tokens, whose numbers always differ."""
    tokens = fresh.video_self.k.shape[2], fresh.audio_self.k.shape[2]
    block_0, later = (cache.video.region, cache.audio.region), (cache.video.step, cache.audio.step)
    if tokens not in (block_0, later):
        raise ValueError(f"fresh: {tokens} tokens, but block 0 has {block_0} and every later block {later}")
    return tokens == block_0


def _put_first(slots: Slots, past: KV, fresh: KV) -> tuple[KV, Leaf]:
    """Write block 0, its sinks moved from its front to its back; also returns the pinned keys."""
    region = KV(*(jnp.roll(x, -slots.sinks, axis=2).astype(past.k.dtype) for x in (fresh.k, fresh.v)))
    pinned = _on_mesh(region.k[:, :, slots.region - slots.pinned :]) if slots.pinned else None
    return _write(past, region, 0), pinned


def _write(past: KV, fresh: KV, start: Leaf) -> KV:
    return KV(*(_put(old, new, start) for old, new in ((past.k, fresh.k), (past.v, fresh.v))))


def _put(old: Leaf, new: Leaf, start: Leaf) -> Array:
    return _on_mesh(jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=2))


def _on_mesh(slots: Leaf) -> Array:
    """Cut slots [L, B, S, N, H] by rows and heads where there is a mesh."""
    return constrain(slots, None, "batch", None, "heads", None)


def _stand(slots: Slots, past: KV, pinned: Leaf, shift: Rotary) -> KV:
    """Overwrite the pinned slots with keys turned from their first place."""
    return KV(k=_put(past.k, rotate(pinned, shift), slots.region - slots.pinned), v=past.v)
