"""Splash attention, Pallas's flash kernel for TPU, over keys in parts.

Without a gradient each part is a kernel of its own and the results are merged by their log-sum-exp, so a cache is read
where it lies. Under a gradient, which jax's kernel gives for one set of keys only, the parts are concatenated first.
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

from omniforcing_jax.nn.kv_segments import KVSegment, concat_keys

LANES = 128  # lengths are padded to multiples of it
LARGEST_BLOCK = 512  # of queries and of keys that the kernel holds at once
WASTE = 2  # padded scores per wanted one, beyond which the plain form is cheaper


class Keys(NamedTuple):
    """One part as the kernel takes it: `seen` is 1 where a key may be seen and 0 elsewhere; None sees all."""

    k: Float[Array, "B S N H"]
    v: Float[Array, "B S N H"]
    seen: Int[Array, "B S"] | None


def refusal(q: Float[Array, "B T N H"], parts: Sequence[KVSegment]) -> str | None:
    """Say why the kernel cannot take this attention; None if it can."""
    queries, keys = q.shape[1], [part.k.shape[1] for part in parts]
    if any(part.differs_by_query for part in parts):
        return "a mask that differs by query"
    if q.shape[-1] % (LANES // 2):
        return f"heads of {q.shape[-1]}, no multiple of {LANES // 2}"
    wanted = queries * sum(keys)
    if (padded := _padded(queries) * sum(map(_padded, keys))) > WASTE * wanted:
        return f"padding to {LANES} would take {padded / wanted:.1f} times the scores"
    return None


def splash_attention(
    q: Float[Array, "B T N H"], parts: Sequence[KVSegment], *, interpret: bool = False
) -> Float[Array, "B T N H"]:
    """Do what `plain_attention` does, with masks by key only; scores and sums in float32.

    `interpret` runs the kernel in Pallas's interpreter, on any backend and slowly.
    """
    keys = tuple(Keys(p.k, p.v, None if p.bias is None else p.seen.astype(jnp.int32)) for p in parts)
    scaled = (q / math.sqrt(q.shape[-1])).astype(q.dtype)
    return _union(interpret, scaled, keys)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _union(interpret: bool, q: Array, parts: tuple[Keys, ...]) -> Array:
    if len(parts) == 1:
        return _kernel(q, parts[0], interpret, sizes=False)
    pieces, sizes = zip(*(_kernel(q, part, interpret, sizes=True) for part in parts), strict=True)
    shares = jax.nn.softmax(jnp.stack(sizes), axis=0)[..., None]
    return jnp.sum(shares * jnp.stack(pieces), axis=0).astype(q.dtype)


def _union_forward(interpret: bool, q: Array, parts: tuple[Keys, ...]) -> tuple[Array, Any]:
    return jax.vjp(lambda q, parts: _kernel(q, _joined(parts), interpret, sizes=False), q, parts)


def _union_backward(interpret: bool, pull: Any, cotangent: Array) -> tuple[Array, tuple[Keys, ...]]:
    return pull(cotangent)


_union.defvjp(_union_forward, _union_backward)


def _kernel(q: Float[Array, "B T N H"], keys: Keys, interpret: bool, *, sizes: bool) -> Any:
    """Run the kernel on lengths padded to what it takes; with `sizes` also the log-sum-exp of the scores, [B, T, N]."""
    queries, length = q.shape[1], keys.k.shape[1]
    q, k, v = (_pad(jnp.swapaxes(x, 1, 2), 2) for x in (q, keys.k, keys.v))
    run = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * q.shape[1]),
        block_sizes=_blocks(q.shape[2], k.shape[2]),
        save_residuals=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    seen = keys.seen
    if seen is None and k.shape[2] > length:
        seen = jnp.ones((q.shape[0], length), jnp.int32)
    made: Any
    if seen is None:
        made = jax.vmap(run)(q, k, v)
    else:
        made = jax.vmap(run)(q, k, v, splash.SegmentIds(jnp.ones(q.shape[::2], jnp.int32), _pad(seen, 1)))
    if not sizes:
        return jnp.swapaxes(made, 1, 2)[:, :queries]
    y, (size,) = made
    return jnp.swapaxes(y, 1, 2)[:, :queries], jnp.swapaxes(size, 1, 2)[:, :queries]


def _joined(parts: tuple[Keys, ...]) -> Keys:
    """Concatenate the parts."""
    seen = None
    if any(part.seen is not None for part in parts):
        seen = concat_keys([jnp.ones(p.k.shape[:2], jnp.int32) if p.seen is None else p.seen for p in parts])
    return Keys(concat_keys([part.k for part in parts]), concat_keys([part.v for part in parts]), seen)


def _blocks(queries: int, keys: int) -> splash.BlockSizes:
    q, kv = _block(queries), _block(keys)
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


def _block(length: int) -> int:
    """Return the largest block that divides a padded length."""
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _pad(x: Array, axis: int) -> Array:
    """Put zeros behind an axis up to a multiple of the lanes."""
    missing = _padded(x.shape[axis]) - x.shape[axis]
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x
