"""Flash attention of cuDNN, for GPUs, over keys in several segments.

Without a gradient, segments that are seen where they are become one call, and each shifted one a call of its own. The
results are merged by a log-sum-exp in float32. jax's public call rounds that to the queries' type, and bfloat16 is too
coarse; so this file calls the function below it. Under a gradient all segments are concatenated.

A mask that shows a prefix of the keys becomes a length, by which the kernel skips keys. Any other mask becomes a full
one, which it reads. The kernel has a gradient for even lengths only; otherwise the plain form is differentiated.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn.fused_attention_stablehlo import MaskType
from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention as call_with_sums
from jaxtyping import Array, Float

from omniforcing_jax.nn.kv_segments import KVSegment, concat_keys, merge, move_keys, plain_attention, queries_for

HEAD_STEP, LARGEST_HEAD = 8, 128
TYPES = ("bfloat16", "float16")


def refusal(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> str | None:
    """Return why the kernel cannot compute this attention; None if it can."""
    head = q.shape[-1]
    if any(s.differs_by_query for s in segments):
        return "a mask that differs by query"
    if q.dtype.name not in TYPES:
        return f"{q.dtype.name}, not one of {', '.join(TYPES)}"
    if head % HEAD_STEP or head > LARGEST_HEAD:
        return f"heads of {head}, no multiple of {HEAD_STEP} up to {LARGEST_HEAD}"
    return None


def cudnn_attention(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Compute what `plain_attention` does; masks must not differ by query."""
    arrays = tuple((s.k, s.v, s.bias, s.shift) for s in segments)
    return _union(tuple(s.prefix for s in segments), q, arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _union(prefixes: tuple[bool, ...], q: Array, arrays: Any) -> Array:
    groups = _groups(_segments(prefixes, arrays))
    if len(groups) == 1:
        return _attend_joined(queries_for(q, groups[0][0]), groups[0])
    return merge([attend_with_sums(queries_for(q, group[0]), group) for group in groups], q.dtype)


def _union_forward(prefixes: tuple[bool, ...], q: Array, arrays: Any) -> tuple[Array, Any]:
    def joined(q: Array, arrays: Any) -> Array:
        segments = sorted(map(move_keys, _segments(prefixes, arrays)), key=lambda s: s.bias is not None)
        return _attend_joined(q, segments) if _has_gradient(q, segments) else plain_attention(q, segments)

    return jax.vjp(joined, q, arrays)


def _union_backward(prefixes: tuple[bool, ...], pull: Any, cotangent: Array) -> Any:
    return pull(cotangent)


_union.defvjp(_union_forward, _union_backward)


def _has_gradient(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> bool:
    """Whether the kernel has a gradient: both lengths must be even, says jax@0.11.2, even where there is no mask."""
    return q.shape[1] % 2 == 0 and sum(s.k.shape[1] for s in segments) % 2 == 0


def _segments(prefixes: tuple[bool, ...], arrays: Any) -> list[KVSegment]:
    return [KVSegment(k, v, bias, prefix, shift) for prefix, (k, v, bias, shift) in zip(prefixes, arrays, strict=True)]


def _groups(segments: Sequence[KVSegment]) -> list[list[KVSegment]]:
    """Put segments together that one call can read: all without a shift, and each other one alone."""
    still, moved = ([s for s in segments if (s.shift is None) is is_still] for is_still in (True, False))
    return [group for group in (still, *([s] for s in moved)) if group]


def _attend_joined(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    k, v = concat_keys([s.k for s in segments]), concat_keys([s.v for s in segments])
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **mask_arguments(q, segments))


def attend_with_sums(
    q: Float[Array, "B T N H"], segments: Sequence[KVSegment]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attend to segments that are seen where they are; also return the log-sum-exp of the scores, in float32."""
    k, v, mask = concat_keys([s.k for s in segments]), concat_keys([s.v for s in segments]), mask_arguments(q, segments)
    lengths, kind = (None, None), MaskType.NO_MASK
    if "key_value_seq_lengths" in mask:
        lengths = jnp.full(len(q), q.shape[1], jnp.int32), mask["key_value_seq_lengths"]
        kind = MaskType.PADDING
    scale = 1 / math.sqrt(q.shape[-1])
    returned: Any = call_with_sums(
        q, k, v, None, mask.get("mask"), *lengths, scale=scale, mask_type=kind, return_residual=True
    )
    y, sums = returned  # sums are [B, N, T]
    return y, jnp.swapaxes(sums, 1, 2)


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
