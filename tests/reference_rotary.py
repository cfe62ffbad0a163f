"""Rotary tables as the reference keeps them, read as ours."""

import jax.numpy as jnp

from omniforcing_jax.config import RotaryKind
from omniforcing_jax.nn.rope import Rotary


def from_interleaved(cos, sin, heads: int) -> Rotary:
    """Read interleaved tables [B, T, D], in which each angle is written twice."""
    shape = (*cos.shape[:2], heads, -1)
    halves = [jnp.asarray(x)[..., 0::2].reshape(shape) for x in (cos, sin)]
    return Rotary(cos=halves[0], sin=halves[1], kind=RotaryKind.INTERLEAVED)


def from_split(cos, sin) -> Rotary:
    """Read split tables [B, N, T, H/2], heads before tokens."""
    moved = [jnp.swapaxes(jnp.asarray(x), 1, 2) for x in (cos, sin)]
    return Rotary(cos=moved[0], sin=moved[1], kind=RotaryKind.SPLIT)
