"""The feed-forward part of a layer: expand, GELU (tanh), contract."""

import jax
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.nn.linear import Linear, linear_spec, project


@struct.dataclass
class Mlp:
    """Two linear maps with a GELU (tanh) between."""

    up: Linear
    down: Linear


def mlp_spec(inputs: int, hidden: int, outputs: int, *, bias: bool = True) -> Mlp:
    """Declare an mlp."""
    return Mlp(
        up=linear_spec(inputs, hidden, ("to_mlp", None), bias=bias),
        down=linear_spec(hidden, outputs, ("embed", "mlp"), bias=bias),
    )


def apply_mlp(p: Mlp, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
    """Expand, GELU (tanh), contract."""
    return project(p.down, jax.nn.gelu(project(p.up, x), approximate=True))
