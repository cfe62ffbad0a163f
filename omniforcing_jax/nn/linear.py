"""Linear maps: matrices `[out, in]`, as they are on disk, contracted over their last axis.

`project` is the one place that looks at a weight's type. A quantised or low-rank leaf would be understood here and
nowhere else.
"""

import jax
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.parallel.spec import Leaf, Spec, array, fan_in, zeros


@struct.dataclass
class Linear:
    """y = x w^T + b."""

    w: Leaf  # [O, I]
    b: Leaf  # [O] or None


def linear_spec(
    inputs: int, outputs: int, axes: tuple[str | None, str | None] = (None, None), *, bias: bool = True
) -> Linear:
    """Declare a linear map; `axes` names (out, in)."""
    return Linear(w=Spec((outputs, inputs), axes, fan_in), b=Spec((outputs,), axes[:1], zeros) if bias else None)


def project(p: Linear, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
    """Apply a linear map in x's type, whatever type the weights have."""
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    y = jax.lax.dot_general(x, array(p.w).astype(x.dtype), contract)
    if p.b is None:
        return y
    return y + array(p.b).astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
