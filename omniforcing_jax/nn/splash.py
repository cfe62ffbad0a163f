"""Splash attention, Pallas's flash kernel for TPU, over keys in several segments.

Without a gradient each segment is a kernel of its own. Their results are merged by log-sum-exp, so a cache is read in
place. jax's kernel has a gradient for one set of keys only, so under a gradient the segments are concatenated first.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from omniforcing_jax.nn.kv_segments import KVSegment, concat_keys, merge, move_keys, queries_for
from omniforcing_jax.nn.rope import Rotary

LANES = 128  # lengths are padded to multiples of it
LARGEST_TILE = 512  # queries, and keys, that the kernel holds at once
WASTE = 2  # padded scores per needed one, beyond which the plain form is cheaper


class Keys(NamedTuple):
    """One segment as the kernel takes it: `seen` is 1 where a key may be seen and 0 elsewhere; None shows all.

    `shift` is that of the segment.
    """

    k: Float[Array, "B S N H"]
    v: Float[Array, "B S N H"]
    seen: Int[Array, "B S"] | None
    shift: Rotary | None


def refusal(q: Float[Array, "B T N H"], segments: Sequence[KVSegment]) -> str | None:
    """Return why the kernel cannot compute this attention; None if it can."""
    queries, keys = q.shape[1], [s.k.shape[1] for s in segments]
    if any(s.differs_by_query for s in segments):
        return "a mask that differs by query"
    if q.shape[-1] % (LANES // 2):
        return f"heads of {q.shape[-1]}, no multiple of {LANES // 2}"
    needed = queries * sum(keys)
    if (padded := _padded(queries) * sum(map(_padded, keys))) > WASTE * needed:
        return f"padding to {LANES} would take {padded / needed:.1f} times the scores"
    return None


def splash_attention(
    q: Float[Array, "B T N H"], segments: Sequence[KVSegment], *, interpret: bool = False
) -> Float[Array, "B T N H"]:
    """Compute what `plain_attention` does, scores and sums in float32; masks must not differ by query.

    `interpret` runs the kernel in Pallas's interpreter: on any backend, slowly.
    """
    keys = tuple(Keys(s.k, s.v, None if s.bias is None else s.seen.astype(jnp.int32), s.shift) for s in segments)
    scaled = (q / math.sqrt(q.shape[-1])).astype(q.dtype)
    return _union(interpret, scaled, keys)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _union(interpret: bool, q: Array, segments: tuple[Keys, ...]) -> Array:
    if len(segments) == 1:
        return _kernel(_queries(q, segments[0]), segments[0], interpret)
    return merge([_kernel_with_sizes(_queries(q, keys), keys, interpret) for keys in segments], q.dtype)


def _union_forward(interpret: bool, q: Array, segments: tuple[Keys, ...]) -> tuple[Array, Any]:
    return jax.vjp(lambda q, segments: _kernel(q, _joined(segments), interpret), q, segments)


def _union_backward(interpret: bool, pull: Any, cotangent: Array) -> tuple[Array, tuple[Keys, ...]]:
    return pull(cotangent)


_union.defvjp(_union_forward, _union_backward)


def _kernel(q: Float[Array, "B T N H"], keys: Keys, interpret: bool) -> Float[Array, "B T N H"]:
    y = _run(q, keys, interpret, sizes=False)
    return jnp.swapaxes(y, 1, 2)[:, : q.shape[1]]


def _kernel_with_sizes(
    q: Float[Array, "B T N H"], keys: Keys, interpret: bool
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Also return the log-sum-exp of the scores."""
    y, (size,) = _run(q, keys, interpret, sizes=True)
    return jnp.swapaxes(y, 1, 2)[:, : q.shape[1]], jnp.swapaxes(size, 1, 2)[:, : q.shape[1]]


def _run(q: Float[Array, "B T N H"], keys: Keys, interpret: bool, *, sizes: bool) -> Any:
    """Run the kernel on padded lengths, heads before tokens."""
    length = keys.k.shape[1]
    q, k, v = (_pad(jnp.swapaxes(x, 1, 2), 2) for x in (q, keys.k, keys.v))
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * q.shape[1]),
        block_sizes=_tiles(q.shape[2], k.shape[2]),
        save_residuals=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    seen = keys.seen
    if seen is None and k.shape[2] > length:
        seen = jnp.ones((q.shape[0], length), jnp.int32)
    if seen is None:
        return jax.vmap(kernel)(q, k, v)
    return jax.vmap(kernel)(q, k, v, splash.SegmentIds(jnp.ones(q.shape[::2], jnp.int32), _pad(seen, 1)))


def _queries(q: Float[Array, "B T N H"], keys: Keys) -> Float[Array, "B T N H"]:
    return queries_for(q, KVSegment(keys.k, keys.v, shift=keys.shift))


def _joined(segments: tuple[Keys, ...]) -> Keys:
    """Move the keys of the segments, and concatenate them."""
    moved = [move_keys(KVSegment(s.k, s.v, shift=s.shift)) for s in segments]
    seen = None
    if any(s.seen is not None for s in segments):
        seen = concat_keys([jnp.ones(s.k.shape[:2], jnp.int32) if s.seen is None else s.seen for s in segments])
    return Keys(concat_keys([s.k for s in moved]), concat_keys([s.v for s in moved]), seen, None)


def _tiles(queries: int, keys: int) -> splash.BlockSizes:
    q, kv = _tile(queries), _tile(keys)
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )


def _tile(length: int) -> int:
    """Return the largest tile that divides a padded length."""
    return max(size for size in range(LANES, LARGEST_TILE + 1, LANES) if length % size == 0)


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _pad(x: Array, axis: int) -> Array:
    """Append zeros along an axis, up to a multiple of the lanes."""
    missing = _padded(x.shape[axis]) - x.shape[axis]
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x
