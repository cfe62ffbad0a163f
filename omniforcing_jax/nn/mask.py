"""Attention masks on block indices: one rule, and the forms of it that a kernel can use.

    visible(q, k) = 0 <= k <= q  and  (q - k < window  or  k < pinned)

Three blocks, two sinks `s` in front of the keys, window 2, sinks pinned, block 0 not:

              keys   s s | 0 | 1 1 | 2 2
    queries of 0     x x   x
    queries of 1     x x   x   x x
    queries of 2     x x       x x   x x

`dense_mask` writes this out and is the readable truth. `banded_mask` turns it into static ranges of keys for each range
of queries, so that no masked score is ever computed.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omniforcing_jax.nn.rope import Rotary
from omniforcing_jax.parallel.spec import ArrayLeaf

HIDDEN = float(np.finfo(np.float32).min)  # added to a score; finite, so that a row that sees nothing has no NaN
Range = tuple[int, int]


class TokenSpan(NamedTuple):
    """Consecutive tokens [start, stop) of one block."""

    start: int
    stop: int
    block: int
    pinned: bool = False


class QueryBand(NamedTuple):
    """A range of queries, and the ranges of fresh and of cached keys that all of them see."""

    queries: Range
    fresh: tuple[Range, ...]
    past: tuple[Range, ...] = ()


@struct.dataclass
class PastMask:
    """What a block sees of the cached keys of one site, and where its own keys go.

    Attributes:
        ring: Bias for the scores of the ring's keys, as `AttentionMask.bias`; None shows all.
        pinned: The same for pinned keys; those that it shows come first.
        shift: Rotation, one row, by which pinned keys are seen moved; None sees them where they are.
        slot: First of the ring's slots that the block's own keys and values are written to, int32 []. They are then
            read there, and `ring` shows them too. None keeps them apart from the ring.
        is_prefix: Whether the keys that `ring` shows come first in the ring.
    """

    ring: ArrayLeaf | None = None
    pinned: ArrayLeaf | None = None
    shift: Rotary | None = None
    slot: ArrayLeaf | None = None
    is_prefix: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class AttentionMask:
    """Which keys the queries of one site may see. An empty mask hides nothing.

    Attributes:
        bias: Added to the scores of fresh keys; broadcasts to [B, N, T, S]. With one row for all heads and queries it
            holds only 0 and HIDDEN (`mask_bias`).
        scale: [T], multiplies the queries (log-ratio scaling).
        past: What the queries may see of cached keys.
        bands: Static ranges; None is one band of everything.
        is_prefix: Whether the keys that `bias` shows come first.
    """

    bias: ArrayLeaf | None = None
    scale: ArrayLeaf | None = None
    past: PastMask = PastMask()
    bands: tuple[QueryBand, ...] | None = struct.field(pytree_node=False, default=None)
    is_prefix: bool = struct.field(pytree_node=False, default=False)


def visible(
    queries: Int[np.ndarray, " T"], keys: Int[np.ndarray, " S"], pinned: Bool[np.ndarray, " S"], window: int
) -> Bool[np.ndarray, "T S"]:
    """Apply the rule to block indices; an empty slot has index -1."""
    q, k = queries[:, None], keys[None, :]
    return (k >= 0) & (k <= q) & ((q - k < window) | pinned[None, :])


def visible_tokens(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan], window: int) -> Bool[np.ndarray, "T S"]:
    """Write the rule out as a mask over tokens."""
    (q, _), (k, pinned) = _per_token(queries), _per_token(keys)
    return visible(q, k, pinned, window)


def dense_mask(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan], window: int) -> AttentionMask:
    """Build the mask as an additive bias over all tokens."""
    bias = np.where(visible_tokens(queries, keys, window), 0, HIDDEN)[None, None]
    return AttentionMask(bias=jnp.asarray(bias, jnp.float32))


def banded_mask(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan], window: int) -> AttentionMask:
    """Build the mask as static key ranges per block of queries: the fast form of `dense_mask`."""
    bands = [QueryBand(band.queries, _merge(band.keys)) for band in _visible_spans(queries, keys, window)]
    return AttentionMask(bands=tuple(bands))


def context_mask(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan], window: int) -> AttentionMask:
    """Build a mask of blocks that see themselves among the fresh keys, and earlier blocks among cached keys only."""
    bands = []
    for block, span, seen in _visible_spans(queries, keys, window):
        fresh = _merge(k for k in seen if k.block == block)
        bands.append(QueryBand(span, fresh, _merge(k for k in seen if k.block != block)))
    return AttentionMask(bands=tuple(bands))


def log_ratio_scale(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan], window: int) -> Float[np.ndarray, " T"]:
    """Scale log(1 + visible) / log(1 + total) of each query.

    Source: OmniForcing@50a271f:ltx_causal/attention/mask_builder.py, compute_causal_log_scales.
    """
    seen = visible_tokens(queries, keys, window).sum(axis=1)
    return (np.log1p(seen) / np.log1p(keys[-1].stop)).astype(np.float32)


def mask_bias(seen: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Turn a mask (True may be seen) into numbers to add to scores."""
    return jnp.where(seen, 0.0, HIDDEN).astype(jnp.float32)


def _per_token(spans: Sequence[TokenSpan]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [span.stop - span.start for span in spans]
    blocks, pinned = [span.block for span in spans], [span.pinned for span in spans]
    return np.repeat(blocks, lengths).astype(np.int32), np.repeat(pinned, lengths).astype(bool)


class _VisibleSpans(NamedTuple):
    """The queries of one block, and the spans of keys that they see."""

    block: int
    queries: Range
    keys: list[TokenSpan]


def _visible_spans(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan], window: int) -> list[_VisibleSpans]:
    """Apply the rule to spans instead of tokens; queries of one block are taken together."""
    ranges: dict[int, Range] = {}
    for span in queries:
        start = ranges[span.block][0] if span.block in ranges else span.start
        ranges[span.block] = (start, span.stop)
    blocks, pinned = np.array([k.block for k in keys], np.int32), np.array([k.pinned for k in keys], bool)
    seen = visible(np.array(list(ranges), np.int32), blocks, pinned, window)
    return [
        _VisibleSpans(block, ranges[block], [k for k, sees in zip(keys, row, strict=True) if sees])
        for block, row in zip(ranges, seen, strict=True)
    ]


def _merge(spans: Iterable[TokenSpan]) -> tuple[Range, ...]:
    """Join spans that follow each other without a gap."""
    merged: list[Range] = []
    for span in spans:
        if merged and merged[-1][1] == span.start:
            merged[-1] = (merged[-1][0], span.stop)
        else:
            merged.append((span.start, span.stop))
    return tuple(merged)
