"""Flash attention of cuDNN, for GPUs, over keys in several segments.

The segments are concatenated. Merging separate results instead would need the log-sum-exp in float32, but jax returns
it in the queries' type, and bfloat16 is too coarse. A mask that shows a prefix of the keys becomes a length, by which
the kernel skips keys. Any other mask becomes a full one, which it reads.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax.nn.kv_segments import KVSegment, concat_keys

HEAD_STEP, LARGEST_HEAD = 8, 128
TYPES = ("bfloat16", "float16")


def refusal(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> str | None:
    """Return why the kernel cannot compute this attention; None if it can."""
    queries, keys, head = q.shape[1], sum(s.k.shape[1] for s in segments), q.shape[-1]
    if any(s.differs_by_query for s in segments):
        return "a mask that differs by query"
    if q.dtype.name not in TYPES:
        return f"{q.dtype.name}, not one of {', '.join(TYPES)}"
    if head % HEAD_STEP or head > LARGEST_HEAD:
        return f"heads of {head}, no multiple of {HEAD_STEP} up to {LARGEST_HEAD}"
    if any(s.bias is not None for s in segments) and not _is_prefix(segments) and (queries % 2 or keys % 2):
        return f"a full mask of {queries} x {keys}: under a gradient both must be even"
    return None


def cudnn_attention(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Compute what `plain_attention` does; masks must not differ by query."""
    k, v = concat_keys([s.k for s in segments]), concat_keys([s.v for s in segments])
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **mask_arguments(q, segments))


def mask_arguments(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> dict[str, Any]:
    """Return the mask as arguments of `jax.nn.dot_product_attention`."""
    if all(s.bias is None for s in segments):
        return {}
    seen = concat_keys([s.seen for s in segments])
    if _is_prefix(segments):
        return {"key_value_seq_lengths": jnp.sum(seen, axis=1, dtype=jnp.int32)}
    return {"mask": jnp.broadcast_to(seen[:, None, None], (len(q), 1, q.shape[1], seen.shape[1]))}


def _is_prefix(segments: Sequence[KVSegment]) -> bool:
    """Whether the visible keys come first when all segments are concatenated."""
    *whole, last = segments
    return last.prefix and all(s.bias is None for s in whole)
