"""Normalisations, computed in float32 and returned in the input's type."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax.parallel.spec import Leaf, array

EPSILON = 1e-6


def rms_norm(x: Float[Array, "*batch D"], weight: Leaf = None) -> Float[Array, "*batch D"]:
    """Divide by the root mean square over the last axis, then multiply by a learned weight if there is one."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + EPSILON)
    if weight is not None:
        wide = wide * array(weight).astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return wide.astype(x.dtype)


def layer_norm(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """Subtract the mean and divide by the standard deviation over the last axis; nothing is learned."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return wide.astype(x.dtype)
