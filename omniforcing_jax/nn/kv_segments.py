"""Softmax attention over keys in several segments: the plain form, against which every kernel is tested.

Cached and fresh keys are never concatenated here. Their scores share one softmax: its maximum and its sum run over all
segments, so a cache is read in place. A segment may be seen at later positions than its keys were rotated for: then the
queries are rotated back. splash.py and cudnn.py hold the kernels that do the same.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from omniforcing_jax.nn.mask import HIDDEN
from omniforcing_jax.nn.rope import Rotary, rotate, rotate_back


class KVSegment(NamedTuple):
    """Some of the keys that one softmax runs over.

    Attributes:
        k: Keys.
        v: Values.
        bias: Added to the scores. With one row for all heads and queries it is a mask of 0 and HIDDEN.
        prefix: Whether the keys that such a mask shows come first.
        shift: Rotation, one row, by which the keys are seen moved; None sees them where they are.
    """

    k: Float[Array, "B S N H"]
    v: Float[Array, "B S N H"]
    bias: Float[Array, "b n t S"] | None = None
    prefix: bool = False
    shift: Rotary | None = None

    @property
    def differs_by_query(self) -> bool:
        """Whether the bias hides a key from some heads or queries and shows it to others."""
        return self.bias is not None and self.bias.shape[1:3] != (1, 1)

    @property
    def seen(self) -> Bool[Array, "B S"]:
        """Which keys the mask shows; all without a mask. Meaningless for a bias that differs by query."""
        if self.bias is None:
            return jnp.ones(self.k.shape[:2], bool)
        return jnp.broadcast_to(self.bias[:, 0, 0] > HIDDEN / 2, self.k.shape[:2])


def concat_keys(arrays: Sequence[Array]) -> Array:
    """Concatenate arrays [B, S, ...] of several segments along the keys."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=1)


def queries_for(q: Float[Array, "B T N H"], segment: KVSegment) -> Float[Array, "B T N H"]:
    """Rotate queries back by a segment's shift: their scores are those of keys that were moved by it."""
    return q if segment.shift is None else rotate_back(q, segment.shift)


def move_keys(segment: KVSegment) -> KVSegment:
    """Move a segment's keys by its shift, which makes new keys; the scores are those of `queries_for`."""
    return segment if segment.shift is None else segment._replace(k=rotate(segment.k, segment.shift), shift=None)


def merge(
    results: Sequence[tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]], dtype: DTypeLike
) -> Float[Array, "B T N H"]:
    """Merge attention over separate segments, each with the log-sum-exp of its scores, into that over all of them."""
    outputs, sums = zip(*results, strict=True)
    shares = jax.nn.softmax(jnp.stack(sums), axis=0)[..., None]
    return jnp.sum(shares * jnp.stack(outputs), axis=0).astype(dtype)


def plain_attention(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Softmax attention over the union of the segments; scores and sums in float32, returned in q's type."""
    scores = [_scores(q, segment) for segment in segments]
    tops = [jnp.max(score, axis=-1, keepdims=True) for score in scores]
    top = jax.lax.stop_gradient(tops[0] if len(tops) == 1 else jnp.max(jnp.stack(tops), axis=0))
    weights = [jnp.exp(score - top) for score in scores]
    total = sum(jnp.sum(weight, axis=-1) for weight in weights)
    mixed = sum(map(_mix, weights, segments))
    return (mixed / jnp.swapaxes(total, 1, 2)[..., None]).astype(q.dtype)


def _scores(q: Float[Array, "B T N H"], segment: KVSegment) -> Float[Array, "B N T S"]:
    q = queries_for(q, segment)
    scores = jnp.einsum("btnh,bsnh->bnts", q, segment.k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    return scores if segment.bias is None else scores + segment.bias


def _mix(weights: Float[Array, "B N T S"], segment: KVSegment) -> Float[Array, "B T N H"]:
    v = segment.v
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
