"""Adaptive layer norm: noise levels become shift, scale and gate.

Each distinct noise level is embedded once. `[B, U]` levels serve T tokens in U groups of consecutive tokens, so no
array of size tokens x rows x width is ever made.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.norm import rms_norm

SINUSOID = 256  # channels of the embedding of a noise level
TIME_SCALE = 1000.0  # the network's input is 1000 sigma


@struct.dataclass
class TimeEmbedding:
    """Weights that turn a noise level into one vector of the stream's width and several modulation rows."""

    up: Linear  # SINUSOID -> D
    down: Linear  # D -> D
    rows: Linear  # D -> rows * D


class ScaleShift(NamedTuple):
    """How a normalised input is modulated: x * (1 + scale) + shift; `[B, U, D]` each."""

    shift: Array
    scale: Array


def time_embedding_spec(width: int, rows: int) -> TimeEmbedding:
    """Declare the embedding of a noise level as `rows` rows of `width`."""
    return TimeEmbedding(
        up=linear_spec(SINUSOID, width, ("embed", None)),
        down=linear_spec(width, width, ("embed", None)),
        rows=linear_spec(width, rows * width, ("embed", None)),
    )


def sinusoid(time: Float[Array, "B U"]) -> Float[Array, "B U 256"]:
    """Cosines, then sines, of time at frequencies exp(-ln(10000) i / 128)."""
    half = SINUSOID // 2
    exponent = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    angle = time[:, :, None] * np.exp(exponent)[None, None, :]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def embed_time(p: TimeEmbedding, time: Float[Array, "B U"]) -> tuple[Float[Array, "B U D"], Float[Array, "B U rows D"]]:
    """Embed scaled noise levels, in float32; return the vector for the output head and the rows for the layers."""
    embedded = project(p.down, jax.nn.silu(project(p.up, sinusoid(time.astype(jnp.float32)))))
    rows = project(p.rows, jax.nn.silu(embedded))
    return embedded, rows.reshape(*embedded.shape[:2], -1, embedded.shape[-1])


def add_table(table: Float[Array, "rows D"], rows: Float[Array, "B U rows D"]) -> Float[Array, "B U rows D"]:
    """Add a layer's table to the rows."""
    return table.astype(jnp.float32)[None, None] + rows


def modulate(x: Float[Array, "B T D"], m: ScaleShift) -> Float[Array, "B T D"]:
    """Scale and shift each token by its group's values, in float32, returned in x's type."""
    grouped = _grouped(x, m.scale) * (1 + m.scale[:, :, None]) + m.shift[:, :, None]
    return grouped.reshape(x.shape).astype(x.dtype)


def modulated_norm(x: Float[Array, "B T D"], m: ScaleShift) -> Float[Array, "B T D"]:
    """Root-mean-square norm, then scale and shift, all in float32, returned in x's type."""
    return modulate(rms_norm(x.astype(jnp.float32)), m).astype(x.dtype)


def add_gated(
    x: Float[Array, "B T D"], y: Float[Array, "B T D"], gate: Float[Array, "b U D"] | None
) -> Float[Array, "B T D"]:
    """Add gate * y to the residual stream x; without a gate, add y unchanged."""
    if gate is None:
        return x + y
    gated = _grouped(y, gate) * gate[:, :, None]
    return (x.astype(jnp.float32) + gated.reshape(x.shape)).astype(x.dtype)


def _grouped(x: Float[Array, "B T D"], per_group: Float[Array, "b U D"]) -> Float[Array, "B U G D"]:
    batch, tokens, width = x.shape
    groups = per_group.shape[1]
    return x.astype(jnp.float32).reshape(batch, groups, tokens // groups, width)
