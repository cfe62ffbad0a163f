"""Flash attention of cuDNN, for GPUs, over keys in parts.

The parts are concatenated: jax gives the log-sum-exp, by which results could be merged instead, in the type of the
queries, and in bfloat16 that is too coarse. A mask that shows a prefix of the keys becomes a length, which the kernel
skips by; any other becomes a full one, which it reads.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax.nn.kv_segments import KVSegment, concat_keys

HEAD_STEP, LARGEST_HEAD = 8, 128
TYPES = ("bfloat16", "float16")


def refusal(q: Float[Array, "B T N H"], parts: Sequence[KVSegment]) -> str | None:
    """Say why the kernel cannot take this attention; None if it can."""
    queries, keys, head = q.shape[1], sum(part.k.shape[1] for part in parts), q.shape[-1]
    if any(part.differs_by_query for part in parts):
        return "a mask that differs by query"
    if q.dtype.name not in TYPES:
        return f"{q.dtype.name}, not one of {', '.join(TYPES)}"
    if head % HEAD_STEP or head > LARGEST_HEAD:
        return f"heads of {head}, no multiple of {HEAD_STEP} up to {LARGEST_HEAD}"
    if any(part.bias is not None for part in parts) and not _is_prefix(parts) and (queries % 2 or keys % 2):
        return f"a full mask of {queries} x {keys}: under a gradient both must be even"
    return None


def cudnn_attention(q: Float[Array, "B T N H"], parts: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Do what `plain_attention` does, with masks by key only."""
    k, v = (concat_keys(arrays) for arrays in ([part.k for part in parts], [part.v for part in parts]))
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **masking(q, parts))


def masking(q: Float[Array, "B T N H"], parts: Sequence[KVSegment]) -> dict[str, Any]:
    """Say which keys may be seen, as arguments of `jax.nn.dot_product_attention`."""
    if all(part.bias is None for part in parts):
        return {}
    seen = concat_keys([part.seen for part in parts])
    if _is_prefix(parts):
        return {"key_value_seq_lengths": jnp.sum(seen, axis=1, dtype=jnp.int32)}
    return {"mask": jnp.broadcast_to(seen[:, None, None], (len(q), 1, q.shape[1], seen.shape[1]))}


def _is_prefix(parts: Sequence[KVSegment]) -> bool:
    """Whether what may be seen of all keys in a row comes first."""
    *whole, last = parts
    return last.prefix and all(part.bias is None for part in whole)
