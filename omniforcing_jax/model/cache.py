"""The cache of a stream: static shapes and one block counter, which alone says what may be read and where to write.

Every site, camera attention included, has two arrays of slots [L, B, S, N, H]:

    pinned   sinks | block 0 | block 1 | ... as many blocks as are pinned; never evicted
    ring     R past blocks, reused in turn; block 0 is in front of them where it is not pinned

Keys are stored rotated, at the seconds of their block, and never move. Pinned keys are seen at later positions all the
same: their part of the softmax rotates the queries back (nn/kv_segments.py). Those of camera attention have no seconds;
they are seen through their cameras when they are read (nn/camera.py).

The arrays are stacked over the layers, or a list of layers has arrays of its own for each. Stacked, denoise steps only
read the cache, and a commit writes the keys of a clean pass. In a list, every pass writes the keys of its block into
the block's own slot and reads them there, so the ring has one block more and nothing is ever copied. What a denoise
step leaves there is overwritten by the next one, and at last by the clean pass.

Rings may be in eight bits (nn/quantised_kv.py). Then a list's denoise steps only read the cache, too: fresh keys stay
wide, and each block is rounded once, when its clean pass is committed.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from omniforcing_jax.config import CameraConfig, ModelConfig, SamplerConfig, StreamConfig
from omniforcing_jax.model.eight_bits import EightBitCache, PastEights, eights_by_site
from omniforcing_jax.model.layer_list import Layers, is_list, map_layers
from omniforcing_jax.nn.attention import KV, Past, Sites, put
from omniforcing_jax.nn.mask import PastMask, mask_bias
from omniforcing_jax.nn.quantised import Eights
from omniforcing_jax.nn.quantised_kv import QuantisedKV, empty_quantised_kv, write_block
from omniforcing_jax.nn.rope import Rotary
from omniforcing_jax.parallel.sharding import constrain, mesh_in_use
from omniforcing_jax.parallel.spec import ArrayLeaf


@dataclasses.dataclass(frozen=True)
class Slots:
    """How the slots of one stream's keys are divided, in tokens.

    Attributes:
        first: Tokens of block 0.
        sinks: Sink tokens, which are pinned.
        step: Tokens of every later block.
        pinned_blocks: Blocks that are never evicted, from block 0 on.
        past: R, the past blocks that are kept besides.
        in_place: Whether the block at hand has a place in the ring, too.
    """

    first: int
    sinks: int
    step: int
    pinned_blocks: int
    past: int
    in_place: bool

    @property
    def ring(self) -> int:
        """Blocks in the ring."""
        return self.past + int(self.in_place)

    @property
    def first_in_ring(self) -> int:
        """The first block whose place is in the ring; it is block 1 even where block 0 is not pinned."""
        return max(1, self.pinned_blocks)

    @property
    def front(self) -> int:
        """Ring tokens of a block 0 that is not pinned."""
        return 0 if self.pinned_blocks else self.first

    @property
    def ring_tokens(self) -> int:
        """Slots of the ring."""
        return self.front + self.ring * self.step

    @property
    def pinned_tokens(self) -> int:
        """Slots that are never evicted."""
        return self.sinks + (self.first + (self.pinned_blocks - 1) * self.step if self.pinned_blocks else 0)

    @property
    def total(self) -> int:
        """All slots."""
        return self.ring_tokens + self.pinned_tokens

    def place_in_ring(self, k: Int[Array, ""] | int) -> Int[Array, ""]:
        """First slot of later block k in the ring; pinned blocks pass through the place of the first one."""
        return jnp.asarray(self.front + jnp.maximum(k - self.first_in_ring, 0) % self.ring * self.step)


@struct.dataclass
class Cache:
    """The keys and values of a stream's past blocks.

    Attributes:
        past: Sites of Past [L, B, S, N, H], or a tuple of such Sites without L, one for each layer.
        blocks_done: Int32 [], blocks committed so far.
        video: Division of the slots of video keys (video_self, v2a).
        audio: Division of the slots of audio keys (audio_self, a2v).
    """

    past: Layers
    blocks_done: ArrayLeaf
    video: Slots = struct.field(pytree_node=False)
    audio: Slots = struct.field(pytree_node=False)

    @property
    def slots(self) -> Sites:
        """The division of each site's slots."""
        first = self.past[0] if is_list(self.past) else self.past
        return Sites.of_keys(self.video, self.audio, None if first.camera is None else self.video)


def empty_cache(
    config: ModelConfig,
    sampler: SamplerConfig,
    grid: tuple[int, int],
    batch: int,
    dtype: DTypeLike = jnp.float32,
    *,
    has_list: bool = False,
    eight_bits: EightBitCache | None = None,
) -> Cache:
    """Make the cache of `batch` streams without any block, on a latent grid of (rows, columns).

    `has_list` makes arrays for each layer, as a network needs whose layers are a list. `eight_bits` says which rings
    are not of the given type.
    """
    layout, per_frame = sampler.layout, grid[0] * grid[1]
    in_place = has_list and eight_bits is None
    kept = {"pinned_blocks": sampler.pinned, "past": sampler.past_blocks, "in_place": in_place}
    video = Slots(first=layout.first_v * per_frame, sinks=0, step=layout.step_v * per_frame, **kept)
    audio = Slots(first=layout.first_a, sinks=config.sinks, step=layout.step_a, **kept)
    narrow, has_camera = eights_by_site(eight_bits), config.camera is not None
    heads = Sites(config.video, config.audio, a2v=config.audio, v2a=config.audio, camera=config.camera)
    lead = (batch,) if has_list else (config.layers, batch)

    def layer() -> Sites:
        slots = Sites.of_keys(video, audio, video if has_camera else None)
        of_sites = narrow if has_camera else dataclasses.replace(narrow, camera=None)
        return jax.tree.map(partial(_empty_past, lead, dtype), slots, heads, of_sites)

    past = tuple(layer() for _ in range(config.layers)) if has_list else layer()
    return Cache(past=past, blocks_done=jnp.zeros((), jnp.int32), video=video, audio=audio)


def _empty_past(
    lead: tuple[int, ...], dtype: DTypeLike, slots: Slots, stream: StreamConfig | CameraConfig, narrow: PastEights
) -> Past:
    def zeros(tokens: int, front: int, eights: Eights | None) -> Any:
        shape = (*lead, tokens, stream.heads, stream.head_size)
        if not tokens:
            return None
        if eights is None:
            return KV(*(_on_mesh(jnp.zeros(shape, dtype)) for _ in "kv"))
        return jax.tree.map(_on_mesh, empty_quantised_kv(shape, eights, front=front, step=slots.step))

    first = slots.sinks + (slots.first if slots.pinned_blocks else 0)
    return Past(zeros(slots.ring_tokens, slots.front, narrow.ring), zeros(slots.pinned_tokens, first, narrow.pinned))


def put_cache(cache: Cache) -> Cache:
    """Move a cache from the host to the device or, under a mesh, to the shardings that commits produce."""
    return jax.device_put(cache) if mesh_in_use() is None else _cut(cache)


@jax.jit
def _cut(cache: Cache) -> Cache:
    return dataclasses.replace(cache, past=jax.tree.map(_on_mesh, cache.past))


def past_masks(cache: Cache, shift: Sites) -> Sites:
    """Say for each site what the next later block may see of the cache, and where its own keys go.

    Args:
        cache: The cache.
        shift: Rotations by which the next block sees pinned keys moved (`positions.shift_rotations`), one row per site.
    """
    done = cache.blocks_done
    rings = Sites.of_keys(*(seen_in_ring(slots, done) for slots in (cache.video, cache.audio)))
    return masks_of(cache, done, rings, shift, is_prefix=cache.video.pinned_blocks > 0)


def masks_of(cache: Cache, k: Int[Array, ""], rings: Sites, shift: Sites, *, is_prefix: bool) -> Sites:
    """Build the masks of later block k from the slots of the ring [S] that it sees at each site.

    `is_prefix` says that they come first.
    """

    def mask(slots: Slots, ring: Bool[Array, " S"], shift: Rotary) -> PastMask:
        return PastMask(
            ring=mask_bias(ring)[None, None, None],
            pinned=_pinned_bias(slots, k),
            shift=shift,
            slot=slots.place_in_ring(k) if slots.in_place else None,
            is_prefix=is_prefix,
        )

    return jax.tree.map(mask, Sites.of_keys(cache.video, cache.audio), rings, shift)


def seen_in_ring(slots: Slots, k: Int[Array, ""]) -> Bool[Array, " S"]:
    """Say which slots of the ring later block k sees in an unbroken stream, its own included if it is there.

    They are one range [start, stop). It grows while the ring fills, and a block 0 that is not pinned drops off its
    front once it is out of the window.
    """
    index, own = jnp.arange(slots.ring_tokens), int(slots.in_place)
    filled = jnp.clip(k - slots.first_in_ring + own, own, slots.ring)
    start = jnp.where(k > slots.past, slots.front, 0)
    return (index >= start) & (index < slots.front + filled * slots.step)


def _pinned_bias(slots: Slots, k: Int[Array, ""]) -> Float[Array, "1 1 1 S"] | None:
    """Hide the pinned blocks that are still to come; None where there is at most one."""
    if slots.pinned_blocks <= 1:
        return None
    made = slots.sinks + slots.first + (jnp.minimum(k, slots.pinned_blocks) - 1) * slots.step
    return mask_bias(jnp.arange(slots.pinned_tokens) < made)[None, None, None]


@jax.named_scope("commit")
def commit(cache: Cache, fresh: Layers) -> Cache:
    """Keep the keys and values of a block's clean pass (`Prediction.fresh`), and advance the block counter.

    Donate the cache: then nothing is copied. The number of tokens tells block 0 from later blocks.

    Raises:
        ValueError: The tokens are neither those of block 0 nor those of a later block.
    """
    write = _write_first if _is_first(cache, fresh) else partial(_write_later, k=cache.blocks_done)
    past = map_layers(partial(jax.tree.map, write, cache.slots), cache.past, fresh)
    return dataclasses.replace(cache, past=past, blocks_done=cache.blocks_done + 1)


def keep(cache: Cache, fresh: Layers) -> Cache:
    """Take over the rings of a denoise step that wrote its keys in place; any other cache stays as it is."""
    if not cache.video.in_place or _is_first(cache, fresh):
        return cache
    past = map_layers(partial(jax.tree.map, _replace_ring, cache.slots), cache.past, fresh)
    return dataclasses.replace(cache, past=past)


def _replace_ring(slots: Slots, past: Past, ring: KV) -> Past:
    return dataclasses.replace(past, ring=ring)


def _is_first(cache: Cache, fresh: Layers) -> bool:
    """Tell block 0 from a later block by the tokens: those of block 0 go nowhere but to its own slots."""
    sites = fresh[0] if is_list(fresh) else fresh
    tokens = sites.video_self.k.shape[-3], sites.audio_self.k.shape[-3]
    video, audio = cache.video, cache.audio
    first = video.first, audio.sinks + audio.first
    later = (video.ring_tokens, audio.ring_tokens) if video.in_place else (video.step, audio.step)
    if tokens not in (first, later):
        raise ValueError(f"fresh: {tokens} tokens, but block 0 has {first} and every later block {later}")
    return tokens == first


def _write_first(slots: Slots, past: Past, fresh: KV) -> Past:
    """Write block 0 behind its sinks; where it is not pinned, it goes to the front of the ring."""
    if slots.pinned_blocks:
        return dataclasses.replace(past, pinned=_put(past.pinned, fresh, 0))
    sinks, block = _cut_tokens(fresh, slice(slots.sinks)), _cut_tokens(fresh, slice(slots.sinks, None))
    return Past(ring=_put(past.ring, block, 0), pinned=_put(past.pinned, sinks, 0) if slots.sinks else None)


def _write_later(slots: Slots, past: Past, fresh: KV, k: Int[Array, ""]) -> Past:
    """Write later block k into its place in the ring and, if it is pinned, into its pinned slots."""
    ring, own = past.ring, fresh
    if slots.in_place:
        ring, own = fresh, _take(fresh, slots.place_in_ring(k), slots.step)
    elif slots.ring:
        ring = _put(ring, fresh, slots.place_in_ring(k))
    return Past(ring=ring, pinned=_pin(slots, past.pinned, own, k))


def _pin(slots: Slots, pinned: Any, own: KV, k: Int[Array, ""]) -> Any:
    """Write later block k to the pinned blocks if it is one of them; a block that is not leaves them as they are."""
    if slots.pinned_blocks <= 1:
        return pinned
    assert pinned is not None, "pinned blocks without slots"
    start = slots.sinks + slots.first + (jnp.clip(k, 1, slots.pinned_blocks - 1) - 1) * slots.step
    if isinstance(pinned, QuantisedKV):
        return jax.tree.map(_on_mesh, write_block(pinned, own.k, own.v, start, k < slots.pinned_blocks))
    old = _take(pinned, start, slots.step)
    new = jax.tree.map(lambda new, old: jnp.where(k < slots.pinned_blocks, new.astype(old.dtype), old), own, old)
    return _put(pinned, new, start)


def _take(kv: KV, start: Int[Array, ""] | int, tokens: int) -> KV:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, tokens, axis=x.ndim - 3), kv)


def _cut_tokens(kv: KV, tokens: slice) -> KV:
    return jax.tree.map(lambda x: x[..., tokens, :, :], kv)


def _put(kv: Any, new: KV, start: Int[Array, ""] | int) -> Any:
    assert kv is not None, "keys without slots"
    is_narrow = isinstance(kv, QuantisedKV)
    return jax.tree.map(_on_mesh, write_block(kv, new.k, new.v, start) if is_narrow else put(kv, new, start))


def _on_mesh(slots: Array) -> Array:
    """Shard slots [L, B, S, N, H] by batch and heads where there is a mesh; a list of layers is never on one."""
    return constrain(slots, None, "batch", None, "heads", None) if slots.ndim == 5 else slots
