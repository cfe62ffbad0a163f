"""Attention of every kind the network has: one `attend_to`, over keys in any number of parts.

Queries are [B, T, N, H], keys and values [B, S, N, H]. Past and fresh keys are parts of one softmax,
which kv_segments.py defines and kernels.py hands to what computes it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.nn.kernels import dot_product_attention
from omniforcing_jax.nn.kv_segments import KVSegment
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.mask import AttentionMask, QueryBand
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.nn.rope import Rotary, rotate
from omniforcing_jax.parallel.spec import Leaf, Spec, ones


@struct.dataclass
class Attention:
    """Projections of one attention; q and k are normalised over all heads together."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Leaf  # [inner]
    k_norm: Leaf  # [inner]
    gate: Linear | None  # query width -> heads
    heads: int = struct.field(pytree_node=False)


@struct.dataclass
class KV:
    """Keys (normalised and rotated) and values, [*, B, S, N, H]."""

    k: Leaf
    v: Leaf


@struct.dataclass
class Site:
    """Where one attention stands: rotations of its queries and keys, and who sees whom."""

    rotary_q: Rotary | None = None
    rotary_k: Rotary | None = None
    mask: AttentionMask = AttentionMask()


@struct.dataclass
class Sites:
    """One value for each of the four causal attentions."""

    video_self: Any
    audio_self: Any
    a2v: Any  # video reads audio
    v2a: Any  # audio reads video


NO_PAST = Sites(video_self=None, audio_self=None, a2v=None, v2a=None)


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
    """Declare an attention again from its weights (of one layer)."""
    inner, query_width = p.q.w.shape
    return attention_spec(query_width, p.k.w.shape[1], p.heads, inner // p.heads, gated=p.gate is not None)


def project_kv(p: Attention, x: Float[Array, "B S D"], rotary: Rotary | None) -> KV:
    """Make the keys and values that x offers to be read."""
    k = _split_heads(rms_norm(project(p.k, x), p.k_norm), p.heads)
    v = _split_heads(project(p.v, x), p.heads)
    return KV(k=k if rotary is None else rotate(k, rotary), v=v)


def attend(
    p: Attention,
    x_q: Float[Array, "B T D"],
    x_kv: Float[Array, "B S E"],
    site: Site,
    past: KV | None = None,
    mix: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, "B T D"], KV]:
    """Let x_q read x_kv and the past; also returns the keys and values that x_kv gave.

    `mix` (self-attention only) is 1 for samples that attend and 0 for those whose tokens get their own
    values passed through instead.
    """
    fresh = project_kv(p, x_kv, site.rotary_k)
    return attend_to(p, x_q, fresh, site, past, mix), fresh


def attend_to(
    p: Attention,
    x_q: Float[Array, "B T D"],
    fresh: KV,
    site: Site,
    past: KV | None = None,
    mix: Float[Array, " b"] | None = None,
) -> Float[Array, "B T D"]:
    """Let x_q read given keys and values."""
    q = _split_heads(rms_norm(project(p.q, x_q), p.q_norm), p.heads)
    if site.rotary_q is not None:
        q = rotate(q, site.rotary_q)
    y = masked_attention(q, fresh, past, site.mask)
    if mix is not None:
        weight = mix.astype(y.dtype)[:, None, None, None]
        y = y * weight + fresh.v * (1 - weight)
    if p.gate is not None:
        y = y * (2 * jax.nn.sigmoid(project(p.gate, x_q)))[..., None]
    return project(p.o, y.reshape(*y.shape[:2], -1))


def masked_attention(
    q: Float[Array, "B T N H"], fresh: KV, past: KV | None, mask: AttentionMask
) -> Float[Array, "B T N H"]:
    """Attend as the sight allows: one softmax per segment of queries."""
    if mask.scale is not None:
        q = (q * mask.scale[None, :, None, None]).astype(q.dtype)
    if mask.segments is None:
        parts = [KVSegment(fresh.k, fresh.v, mask.bias)]
        return dot_product_attention(
            q, parts if past is None else [*parts, KVSegment(past.k, past.v, mask.past_bias, mask.past_is_prefix)]
        )
    pieces = [
        dot_product_attention(q[:, slice(*segment.queries)], _parts_of(segment, fresh, past))
        for segment in mask.segments
    ]
    return jnp.concatenate(pieces, axis=1)


def _parts_of(segment: QueryBand, fresh: KV, past: KV | None) -> list[KVSegment]:
    parts = [KVSegment(fresh.k[:, slice(*r)], fresh.v[:, slice(*r)]) for r in segment.fresh]
    if past is not None:
        parts += [KVSegment(past.k[:, slice(*r)], past.v[:, slice(*r)]) for r in segment.past]
    return parts


def _split_heads(x: Float[Array, "B T D"], heads: int) -> Float[Array, "B T N H"]:
    return x.reshape(*x.shape[:2], heads, -1)
