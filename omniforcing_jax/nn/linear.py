"""Linear maps: matrices `[out, in]`, as they are on disk, contracted over their last axis.

`project` is the one place that looks at a weight's type: a matrix may be in eight bits (quantised.py), or have changes
of low rank beside it (low_rank.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.nn.low_rank import LowRank, low_rank_change
from omniforcing_jax.nn.quantised import Quantised, multiply
from omniforcing_jax.parallel.spec import Leaf, Spec, array, fan_in, zeros


@struct.dataclass
class Linear:
    """y = x w^T + b."""

    w: Leaf | Quantised | LowRank  # [O, I]
    b: Leaf  # [O] or None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the matrix, [O, I]."""
        return self.w.shape if isinstance(self.w, Quantised | LowRank) else array(self.w).shape


def linear_spec(
    inputs: int, outputs: int, axes: tuple[str | None, str | None] = (None, None), *, bias: bool = True
) -> Linear:
    """Declare a linear map; `axes` names (out, in)."""
    return Linear(w=Spec((outputs, inputs), axes, fan_in), b=Spec((outputs,), axes[:1], zeros) if bias else None)


def project(p: Linear, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
    """Apply a linear map in x's type, whatever type the weights have; one in eight bits adds its bias in float32."""
    if isinstance(p.w, LowRank):
        return project(dataclasses.replace(p, w=p.w.w), x) + low_rank_change(x, p.w)
    if isinstance(p.w, Quantised):
        return _add(multiply(x, p.w), p.b, jnp.float32).astype(x.dtype)
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return _add(jax.lax.dot_general(x, array(p.w).astype(x.dtype), contract), p.b, x.dtype)


def _add(y: Float[Array, "*batch O"], bias: Leaf, dtype: DTypeLike) -> Float[Array, "*batch O"]:
    return y if bias is None else y + array(bias).astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
