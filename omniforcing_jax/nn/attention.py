"""Attention: projections, rotations, masks, and one softmax over any number of key/value segments.

Queries are [B, T, N, H], keys and values [B, S, N, H]. Cached and fresh keys are segments of one softmax, which
kv_segments.py defines. kernels.py picks the kernel that computes it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float, Int

from omniforcing_jax.nn.kernels import dot_product_attention
from omniforcing_jax.nn.kv_segments import KVSegment
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.mask import AttentionMask, PastMask, QueryBand
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.nn.quantised_kv import QuantisedKV, widen
from omniforcing_jax.nn.rope import Rotary, rotate
from omniforcing_jax.parallel.spec import ArrayLeaf, Leaf, Spec, ones


@struct.dataclass
class Attention:
    """Weights of one attention; q and k are normalised over all heads together.

    On disk and in training q, k and v are matrices of their own. `join_projections` makes one matrix of those that read
    the same input, q, k and v or k and v, which are None then.
    """

    q: Linear | None
    k: Linear | None
    v: Linear | None
    o: Linear
    q_norm: Leaf  # [N * H]
    k_norm: Leaf  # [N * H]
    gate: Linear | None  # query width -> heads
    heads: int = struct.field(pytree_node=False)
    joined: Linear | None = None


@struct.dataclass
class KV:
    """Keys (normalised and rotated) and values, [..., B, S, N, H]."""

    k: ArrayLeaf
    v: ArrayLeaf


@struct.dataclass
class Past:
    """Cached keys and values of one site: the ring of past blocks, and those that are never evicted.

    Either may be None. In a stream whose layers are a list, the block at hand is in the ring too, unless the ring is in
    eight bits.
    """

    ring: KV | QuantisedKV | None
    pinned: KV | QuantisedKV | None = None


def as_past(fresh: Any) -> Any:
    """Let the keys and values of another forward (Sites of KV) be the past of this one."""
    return jax.tree.map(Past, fresh, is_leaf=lambda x: isinstance(x, KV))


@struct.dataclass
class Site:
    """Where one attention happens: rotations of its queries and of its keys, and its mask."""

    rotary_q: Rotary | None = None
    rotary_k: Rotary | None = None
    mask: AttentionMask = AttentionMask()


@struct.dataclass
class Sites:
    """One value for each of the four causal attentions, and one for camera attention where there is any."""

    video_self: Any
    audio_self: Any
    a2v: Any  # video queries, audio keys
    v2a: Any  # audio queries, video keys
    camera: Any = None  # video queries and keys

    @classmethod
    def of_keys(cls, video: Any, audio: Any, camera: Any = None) -> "Sites":
        """Build from one value for video keys and one for audio keys."""
        return cls(video_self=video, audio_self=audio, a2v=audio, v2a=video, camera=camera)


NO_PAST = Sites.of_keys(None, None)


def attention_spec(query_width: int, context_width: int, heads: int, head_size: int, *, gated: bool) -> Attention:
    """Declare an attention with inner width heads * head_size."""
    inner = heads * head_size
    return Attention(
        q=linear_spec(query_width, inner, ("to_heads", None)),
        k=linear_spec(context_width, inner, ("to_heads", None)),
        v=linear_spec(context_width, inner, ("to_heads", None)),
        o=linear_spec(inner, query_width, ("embed", "heads")),
        q_norm=Spec((inner,), (None,), ones),
        k_norm=Spec((inner,), (None,), ones),
        gate=linear_spec(query_width, heads) if gated else None,
        heads=heads,
    )


def attention_spec_of(p: Attention) -> Attention:
    """Declare an attention again from its weights (of one layer, not joined)."""
    assert p.q, "joined projections"
    assert p.k, "joined projections"
    inner, query_width = p.q.shape
    return attention_spec(query_width, p.k.shape[1], p.heads, inner // p.heads, gated=p.gate is not None)


def join_projections(p: Attention, *, is_self: bool) -> Attention:
    """Put the projections of one input into one matrix: q, k and v of a self-attention, k and v of any other.

    They stay apart where some are in eight bits and others not.
    """
    parts = [p.q, p.k, p.v] if is_self else [p.k, p.v]
    if len({jax.tree.structure(part) for part in parts}) > 1:
        return p
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return dataclasses.replace(p, q=None if is_self else p.q, k=None, v=None, joined=joined)


def split_projections(p: Attention, split: Callable[[Any, int], Sequence[Any]] = jnp.split) -> Attention:
    """Undo `join_projections`; `split` cuts a leaf into as many equal parts."""
    if p.joined is None:
        return p
    names = ("k", "v") if p.q is not None else ("q", "k", "v")
    leaves, form = jax.tree.flatten(p.joined)
    parts = zip(*(split(leaf, len(names)) for leaf in leaves), strict=True)
    return dataclasses.replace(p, joined=None, **{n: form.unflatten(x) for n, x in zip(names, parts, strict=True)})


def project_kv(p: Attention, x: Float[Array, "B S D"], rotary: Rotary | None) -> KV:
    """Project x to keys and values; normalise the keys, then rotate them. The queries do not read x."""
    if p.joined is None:
        return _as_kv(p, _project(p.k, x), _project(p.v, x), rotary)
    k, v = jnp.split(project(p.joined, x), 2, axis=-1)
    return _as_kv(p, k, v, rotary)


def _project_all(
    p: Attention, x_q: Float[Array, "B T D"], x_kv: Float[Array, "B S D_kv"], rotary: Rotary | None
) -> tuple[Float[Array, "B T I"], KV]:
    """Project to queries, and to keys and values."""
    if p.q is not None:
        return project(p.q, x_q), project_kv(p, x_kv, rotary)
    q, k, v = jnp.split(_project(p.joined, x_q), 3, axis=-1)
    return q, _as_kv(p, k, v, rotary)


def _project(p: Linear | None, x: Float[Array, "B T D"]) -> Float[Array, "B T I"]:
    assert p is not None, "a projection that the weights do not have"
    return project(p, x)


def _as_kv(p: Attention, k: Float[Array, "B S I"], v: Float[Array, "B S I"], rotary: Rotary | None) -> KV:
    """Normalise and rotate projected keys, and cut both by heads."""
    keys = _split_heads(rms_norm(k, p.k_norm), p.heads)
    return KV(k=keys if rotary is None else rotate(keys, rotary), v=_split_heads(v, p.heads))


def attend(
    p: Attention,
    x_q: Float[Array, "B T D"],
    x_kv: Float[Array, "B S D_kv"],
    site: Site,
    past: Past | None = None,
    mix: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, "B T D"], KV]:
    """Attend from x_q to x_kv and the cached keys.

    Args:
        p: The weights.
        x_q: Tokens that ask. With one matrix for q, k and v they are those that are attended to.
        x_kv: Tokens that are attended to.
        site: Rotations and mask.
        past: Cached keys and values, if any.
        mix: Of each sample, 1 if it attends. At 0 every token gets its own value instead of the mixture, which only
            self-attention can do.

    Returns:
        The output, and the new keys and values of x_kv: alone or, where the mask has a slot for them, in the ring.
    """
    projected, fresh = _project_all(p, x_q, x_kv, site.rotary_k)
    y, kept = _attend_and_keep(_queries(p, projected, site), fresh, past, site.mask)
    if mix is not None:
        weight = mix.astype(y.dtype)[:, None, None, None]
        y = y * weight + fresh.v * (1 - weight)
    return _output(p, x_q, y), kept


def attend_to(p: Attention, x_q: Float[Array, "B T D"], kv: KV, site: Site) -> Float[Array, "B T D"]:
    """Attend from x_q to keys and values that exist already; arguments as `attend`."""
    return _output(p, x_q, masked_attention(_queries(p, _project(p.q, x_q), site), kv, None, site.mask))


def _queries(p: Attention, projected: Float[Array, "B T I"], site: Site) -> Float[Array, "B T N H"]:
    q = _split_heads(rms_norm(projected, p.q_norm), p.heads)
    return q if site.rotary_q is None else rotate(q, site.rotary_q)


def _output(p: Attention, x_q: Float[Array, "B T D"], y: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
    """Scale each head by its gate, if there is one, and project."""
    if p.gate is not None:
        y = y * (2 * jax.nn.sigmoid(project(p.gate, x_q)))[..., None]
    return project(p.o, y.reshape(*y.shape[:2], -1))


def _attend_and_keep(
    q: Float[Array, "B T N H"], fresh: KV, past: Past | None, mask: AttentionMask
) -> tuple[Float[Array, "B T N H"], KV]:
    """Attend, and return what the cache keeps: the fresh keys and values, or the ring with them in their slot."""
    if past is None or mask.past.slot is None:
        return masked_attention(q, fresh, past, mask), fresh
    assert isinstance(past.ring, KV), "a slot without a ring, or in one of eight bits"
    ring = put(past.ring, fresh, mask.past.slot)
    return dot_product_attention(q, past_segments(dataclasses.replace(past, ring=ring), mask.past)), ring


def put(kv: KV, new: KV, start: Int[Array, ""] | int) -> KV:
    """Write keys and values into the slots from `start` on; in place where the old ones are donated."""
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=old.ndim - 3),
        kv,
        new,
    )


def readable(past: Past, dtype: DTypeLike) -> Past:
    """Widen what is in eight bits to a type; all else is readable as it is."""

    def wide(kv: KV | QuantisedKV | None) -> KV | None:
        return KV(*widen(kv, dtype)) if isinstance(kv, QuantisedKV) else kv

    return Past(ring=wide(past.ring), pinned=wide(past.pinned))


def masked_attention(
    q: Float[Array, "B T N H"], fresh: KV, past: Past | None, mask: AttentionMask
) -> Float[Array, "B T N H"]:
    """Attend under a mask: one softmax per band of queries."""
    past = None if past is None else readable(past, fresh.k.dtype)
    if mask.scale is not None:
        q = (q * mask.scale[None, :, None, None]).astype(q.dtype)
    if mask.bands is None:
        own = KVSegment(fresh.k, fresh.v, mask.bias, mask.is_prefix)
        return dot_product_attention(q, [own] if past is None else [own, *past_segments(past, mask.past)])
    pieces = [dot_product_attention(q[:, slice(*band.queries)], _in_band(band, fresh, past)) for band in mask.bands]
    return jnp.concatenate(pieces, axis=1)


def past_segments(past: Past, mask: PastMask) -> list[KVSegment]:
    """Return what is cached, the ring first."""
    ring, pinned = past.ring, past.pinned
    segments = [] if ring is None else [KVSegment(ring.k, ring.v, mask.ring, mask.is_prefix)]
    return segments if pinned is None else [*segments, KVSegment(pinned.k, pinned.v, mask.pinned, True, mask.shift)]


def _in_band(band: QueryBand, fresh: KV, past: Past | None) -> list[KVSegment]:
    """Cut out the keys and values that a band of queries sees."""
    ranges = [(fresh, r) for r in band.fresh]
    if past is not None and past.ring is not None:
        ranges += [(past.ring, r) for r in band.past]
    return [KVSegment(kv.k[:, slice(*r)], kv.v[:, slice(*r)]) for kv, r in ranges]


def _split_heads(x: Float[Array, "B T D"], heads: int) -> Float[Array, "B T N H"]:
    return x.reshape(*x.shape[:2], heads, -1)
