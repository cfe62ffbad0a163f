"""Keys and values in eight bits: keys with a scale for each channel of a block, values with one for each token.

A block is quantised once, when it is written, so nothing is rounded twice while a ring turns. Attention widens what it
reads (attention.py), and the cache declares and writes it (model/cache.py); no other file knows of it. Inference only.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Int

from omniforcing_jax.nn.quantised import BY_DTYPE, Eights, quantise_along
from omniforcing_jax.parallel.spec import ArrayLeaf

TOKENS, CHANNELS = -3, -1  # axes of keys and values [..., B, S, N, H]


@struct.dataclass
class QuantisedKV:
    """Keys and values of K blocks in eight bits, each block in a place of its own.

    Attributes:
        k: Keys [..., B, S, N, H], int8 or float8 e4m3.
        v: Values, as the keys.
        k_scale: Float32 [..., B, K, N, H].
        v_scale: Float32 [..., B, S, N, 1].
        front: Tokens of the first place if it has another length than the others; 0 if all are alike.
    """

    k: ArrayLeaf
    v: ArrayLeaf
    k_scale: ArrayLeaf
    v_scale: ArrayLeaf
    front: int = struct.field(pytree_node=False)


def empty_quantised_kv(shape: tuple[int, ...], eights: Eights, *, front: int, step: int) -> QuantisedKV:
    """Make places without blocks: one of `front` tokens unless that is 0, and others of `step` tokens."""
    *lead, tokens, heads, size = shape
    blocks = int(front > 0) + (tokens - front) // step
    return QuantisedKV(
        k=jnp.zeros(shape, eights.dtype),
        v=jnp.zeros(shape, eights.dtype),
        k_scale=jnp.zeros((*lead, blocks, heads, size), jnp.float32),
        v_scale=jnp.zeros((*lead, tokens, heads, 1), jnp.float32),
        front=front,
    )


@jax.named_scope("to_eight_bits")
def write_block(
    kv: QuantisedKV, k: Array, v: Array, start: Int[Array, ""] | int, is_new: Bool[Array, ""] | bool = True
) -> QuantisedKV:
    """Quantise the keys and values of one block, and write them to its place, which begins at slot `start`.

    Where `is_new` is false the place stays as it is.
    """
    eights = BY_DTYPE[np.dtype(kv.k.dtype)]
    (keys, k_scale), (values, v_scale) = quantise_along(k, eights, TOKENS), quantise_along(v, eights, CHANNELS)
    new = dataclasses.replace(kv, k=keys, v=values, k_scale=k_scale, v_scale=v_scale)
    starts = dataclasses.replace(kv, k=start, v=start, k_scale=_place(kv, start), v_scale=start)

    def write(old: Array, new: Array, start: Int[Array, ""] | int) -> Array:
        axis = old.ndim + TOKENS
        if is_new is not True:
            new = jnp.where(is_new, new, jax.lax.dynamic_slice_in_dim(old, start, new.shape[axis], axis))
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)

    return jax.tree.map(write, kv, new, starts)


def _place(kv: QuantisedKV, start: Int[Array, ""] | int) -> Array:
    """Return the number of the place that begins at a slot."""
    before = int(kv.front > 0)
    places = kv.k_scale.shape[TOKENS] - before
    if not places:
        return jnp.zeros((), jnp.int32)
    step = (kv.k.shape[TOKENS] - kv.front) // places
    return jnp.where(jnp.asarray(start) < kv.front, 0, (jnp.asarray(start) - kv.front) // step + before)


@jax.named_scope("from_eight_bits")
def widen(kv: QuantisedKV, dtype: DTypeLike) -> tuple[Array, Array]:
    """Return keys and values in another type; the compiler may do so inside what reads them."""
    before, slots = int(kv.front > 0), slice(kv.front, None)
    keys = [_widen_places(kv.k[..., slots, :, :], kv.k_scale[..., before:, :, :])]
    if before:
        keys.insert(0, _widen_places(kv.k[..., : kv.front, :, :], kv.k_scale[..., :1, :, :]))
    k = keys[0] if len(keys) == 1 else jnp.concatenate(keys, axis=TOKENS)
    return k.astype(dtype), (kv.v.astype(jnp.float32) * kv.v_scale).astype(dtype)


def _widen_places(values: Array, scale: Array) -> Array:
    """Multiply places of one length, [..., B, S, N, H], by their scales [..., B, K, N, H]."""
    *lead, blocks, heads, size = scale.shape
    if not blocks:
        return values.astype(jnp.float32)
    places = values.astype(jnp.float32).reshape(*lead, blocks, -1, heads, size)
    return (places * scale[..., None, :, :]).reshape(values.shape)
