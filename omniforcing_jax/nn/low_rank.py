"""A matrix with changes of low rank beside it (LoRA), which `project` (linear.py) adds: y = x w^T + s (x down^T) up^T.

Nothing else in the network knows this leaf. The strength is an array, so a change of it compiles nothing. A matrix
whose rows are several projections of one input has as many parts, each with factors of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.parallel.spec import Leaf, array


@struct.dataclass
class LowRank:
    """A matrix w, or a stack of them, and its changes.

    Attributes:
        w: The matrix, [..., O, I], in any form that `project` knows.
        down: First factors of P parts, [..., P, r, I].
        up: Second factors, [..., P, O / P, r].
        strength: How much each rank counts, [..., P, r], float32; 0 leaves the matrix as it is.
        offset: 1 for ranks that change the bias: they count whatever x is, [..., P, r]. None if there are none.
    """

    w: Any
    down: Leaf
    up: Leaf
    strength: Leaf
    offset: Leaf = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the matrix, [..., O, I]."""
        return self.w.shape


def is_low_rank(leaf: Any) -> bool:
    """Whether a node of a tree is a `LowRank`."""
    return isinstance(leaf, LowRank)


@jax.named_scope("low_rank")
def low_rank_change(x: Float[Array, "*batch I"], p: LowRank) -> Float[Array, "*batch O"]:
    """Return what the changes of one matrix add to its product with x, in x's type."""
    down, up, strength = (array(leaf) for leaf in (p.down, p.up, p.strength))
    ranks = jnp.einsum("...i,pri->...pr", x, down.astype(x.dtype))
    if p.offset is not None:
        ranks = ranks + jnp.expand_dims(array(p.offset).astype(x.dtype), range(x.ndim - 1))
    weighed = (ranks * jnp.expand_dims(strength, range(x.ndim - 1))).astype(x.dtype)
    return jnp.einsum("...pr,por->...po", weighed, up.astype(x.dtype)).reshape(*x.shape[:-1], -1)
