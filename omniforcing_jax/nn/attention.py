"""Attention: projections, rotations, masks, and one softmax over any number of key/value segments.

Queries are [B, T, N, H], keys and values [B, S, N, H]. Cached and fresh keys are segments of one softmax, which
kv_segments.py defines. kernels.py picks the kernel that computes it.
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
from omniforcing_jax.parallel.spec import ArrayLeaf, Leaf, Spec, ones


@struct.dataclass
class Attention:
    """Weights of one attention; q and k are normalised over all heads together."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Leaf  # [N * H]
    k_norm: Leaf  # [N * H]
    gate: Linear | None  # query width -> heads
    heads: int = struct.field(pytree_node=False)


@struct.dataclass
class KV:
    """Keys (normalised and rotated) and values, [..., B, S, N, H]."""

    k: ArrayLeaf
    v: ArrayLeaf


@struct.dataclass
class Site:
    """Where one attention happens: rotations of its queries and of its keys, and its mask."""

    rotary_q: Rotary | None = None
    rotary_k: Rotary | None = None
    mask: AttentionMask = AttentionMask()


@struct.dataclass
class Sites:
    """One value for each of the four causal attentions."""

    video_self: Any
    audio_self: Any
    a2v: Any  # video queries, audio keys
    v2a: Any  # audio queries, video keys

    @classmethod
    def of_keys(cls, video: Any, audio: Any) -> "Sites":
        """Build from one value for video keys and one for audio keys."""
        return cls(video_self=video, audio_self=audio, a2v=audio, v2a=video)


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
    """Declare an attention again from its weights (of one layer)."""
    inner, query_width = p.q.shape
    return attention_spec(query_width, p.k.shape[1], p.heads, inner // p.heads, gated=p.gate is not None)


def project_kv(p: Attention, x: Float[Array, "B S D"], rotary: Rotary | None) -> KV:
    """Project x to keys and values; normalise the keys, then rotate them."""
    k = _split_heads(rms_norm(project(p.k, x), p.k_norm), p.heads)
    v = _split_heads(project(p.v, x), p.heads)
    return KV(k=k if rotary is None else rotate(k, rotary), v=v)


def attend(
    p: Attention,
    x_q: Float[Array, "B T D"],
    x_kv: Float[Array, "B S D_kv"],
    site: Site,
    past: KV | None = None,
    mix: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, "B T D"], KV]:
    """Attend from x_q to x_kv and the cached keys.

    Args:
        p: The weights.
        x_q: Tokens that ask.
        x_kv: Tokens that are attended to.
        site: Rotations and mask.
        past: Cached keys and values, if any.
        mix: Of each sample, 1 if it attends. At 0 every token gets its own value instead of the mixture, which only
            self-attention can do.

    Returns:
        The output, and the new keys and values of x_kv.
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
    """Attend from x_q to keys and values that exist already; arguments as `attend`."""
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
    """Attend under a mask: one softmax per band of queries."""
    if mask.scale is not None:
        q = (q * mask.scale[None, :, None, None]).astype(q.dtype)
    if mask.bands is None:
        segments = [KVSegment(fresh.k, fresh.v, mask.bias)]
        if past is not None:
            segments.append(KVSegment(past.k, past.v, mask.past_bias, mask.past_is_prefix))
        return dot_product_attention(q, segments)
    pieces = [dot_product_attention(q[:, slice(*band.queries)], _in_band(band, fresh, past)) for band in mask.bands]
    return jnp.concatenate(pieces, axis=1)


def _in_band(band: QueryBand, fresh: KV, past: KV | None) -> list[KVSegment]:
    """Cut out the keys and values that a band of queries sees."""
    ranges = [(fresh, r) for r in band.fresh]
    if past is not None:
        ranges += [(past, r) for r in band.past]
    return [KVSegment(kv.k[:, slice(*r)], kv.v[:, slice(*r)]) for kv, r in ranges]


def _split_heads(x: Float[Array, "B T D"], heads: int) -> Float[Array, "B T N H"]:
    return x.reshape(*x.shape[:2], heads, -1)
