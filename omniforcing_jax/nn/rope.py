"""Rotary position embedding: per-axis tables from the host in float64, combined and applied on the device.

A position is seconds, or (seconds, pixel row, pixel column). Tables hold one angle per pair of channels. Over the whole
width they are frequency-major and axis-minor, so every head has its own band. Split and interleaved weights differ
only in which channels of a head form a pair.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.config import GridPrecision, RotaryConfig, RotaryKind
from omniforcing_jax.parallel.spec import ArrayLeaf


@struct.dataclass
class Phases:
    """Cosine and sine of one axis: [positions, frequencies], float32, made on the host."""

    cos: ArrayLeaf | np.ndarray
    sin: ArrayLeaf | np.ndarray


@struct.dataclass
class Rotary:
    """Rotation of queries or keys: an angle per token, head and pair of channels."""

    cos: ArrayLeaf  # [1 or B, T, N, H/2], float32
    sin: ArrayLeaf
    kind: RotaryKind = struct.field(pytree_node=False)


def frequencies(config: RotaryConfig, axes: int, width: int) -> Float[np.ndarray, " W"]:
    """Angular frequencies pi/2 * theta^(j / (n - 1)) of one axis, n = width // (2 axes), as float64.

    Both precisions round to float32 numbers at the end, because the weights were trained with those. From there on
    everything is float64.

    Source: ltx-core@1.0.0:model/transformer/rope.py.

    Raises:
        ValueError: The width leaves fewer than two frequencies per axis.
    """
    n = width // (2 * axes)
    if n < 2:
        raise ValueError(f"width={width}: leaves {n} frequencies for each of {axes} axes, must be at least 2")
    dtype = np.float64 if config.grid is GridPrecision.FLOAT64 else np.float32
    exponents = np.linspace(0, 1, n, dtype=dtype)
    grid = np.power(dtype(config.theta), exponents) * dtype(np.pi / 2)
    return grid.astype(np.float32).astype(np.float64)


def angles(grid: Float[np.ndarray, " W"], fractions: Float[np.ndarray, " T"]) -> Phases:
    """Phases of coordinates, as fractions of their maximum: angle = grid * (2 fraction - 1).

    Float64 until the end: after hours the angle is 1e8 rad, and its cosine is still exact to float32.
    """
    angle = (2 * fractions - 1)[:, None] * grid[None, :]
    return Phases(cos=np.cos(angle).astype(np.float32), sin=np.sin(angle).astype(np.float32))


def phases_of_shift(grid: Float[np.ndarray, " W"], fraction: int | float) -> Phases:
    """Phases, one row, that move a key by `fraction` of the maximum: angle = grid * 2 fraction."""
    angle = (2 * fraction * grid)[None, :]
    return Phases(cos=np.cos(angle).astype(np.float32), sin=np.sin(angle).astype(np.float32))


def combine(axes: tuple[Phases, ...], width: int, heads: int, kind: RotaryKind) -> Rotary:
    """Combine per-axis phases into a table over the product of their positions, first axis slowest.

    Channel order is frequency-major, axis-minor. Pairs that are left over come first and are not rotated.
    """
    return Rotary(
        cos=_spread([a.cos for a in axes], width, heads, 1.0),
        sin=_spread([a.sin for a in axes], width, heads, 0.0),
        kind=kind,
    )


def _spread(
    axes: Sequence[ArrayLeaf | np.ndarray], width: int, heads: int, rest: float
) -> Float[Array, "1 T N H_half"]:
    """Give each pair the phases of its axis.

    This is a sum, of which every pair has one term, so that compilers can make it anew wherever it is read. A table of
    all tokens would be read from memory by every layer, and is as large as the queries.
    """
    sizes, n = [a.shape[0] for a in axes], axes[0].shape[1]
    left = width // 2 - n * len(axes)
    total: Any = 0.0
    for i, phases in enumerate(axes):
        own = jnp.zeros((sizes[i], n, len(axes)), jnp.float32).at[:, :, i].set(phases).reshape(sizes[i], n * len(axes))
        own = jnp.pad(own, ((0, 0), (left, 0)), constant_values=0.0 if i else rest)
        total = total + own.reshape((1,) * i + (sizes[i],) + (1,) * (len(axes) - 1 - i) + (width // 2,))
    return total.reshape(1, math.prod(sizes), heads, width // heads // 2)


def repeat(rotary: Rotary, times: int) -> Rotary:
    """Use each row for `times` consecutive tokens."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), rotary)


def with_identity(rotary: Rotary, tokens: int) -> Rotary:
    """Put unrotated tokens in front. Their angles are zero, as for a token in the middle of the range (10 s)."""
    pad = ((0, 0), (tokens, 0), (0, 0), (0, 0))
    return Rotary(jnp.pad(rotary.cos, pad, constant_values=1.0), jnp.pad(rotary.sin, pad), rotary.kind)


def rotate_back(x: Float[Array, "*L B T N H"], rotary: Rotary) -> Float[Array, "*L B T N H"]:
    """Undo `rotate`."""
    return rotate(x, Rotary(rotary.cos, -rotary.sin, rotary.kind))


def rotate(x: Float[Array, "*L B T N H"], rotary: Rotary) -> Float[Array, "*L B T N H"]:
    """Rotate each pair of channels by its angle, in float32, returned in x's type."""
    wide = x.astype(jnp.float32)
    lead = (1,) * (x.ndim - 4)
    cos, sin = rotary.cos.reshape(lead + rotary.cos.shape), rotary.sin.reshape(lead + rotary.sin.shape)
    if rotary.kind is RotaryKind.SPLIT:
        pairs = wide.reshape(*x.shape[:-1], 2, -1)
        signs = jnp.asarray((-1.0, 1.0)).reshape((1,) * (x.ndim - 1) + (2, 1))
        turned = (pairs * cos[..., None, :] + jnp.flip(pairs, -2) * (signs * sin[..., None, :])).reshape(x.shape)
    else:
        a, b = wide[..., 0::2], wide[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    return turned.astype(x.dtype)
