"""The state of a streaming codec: the last rows that each convolution saw.

The state is in the Linen collection `carry`, an explicit pytree at `apply`. There is no flag for "streaming". A call
without the collection starts at the true beginning, with zeros before it. A call with it continues where the last one
ended. A call that makes it mutable returns the new state. A whole clip is a first call whose state nobody keeps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COLLECTION = "carry"


def is_first_call(module: nn.Module) -> bool:
    """True on the first call, before any state exists. Known at trace time: it depends on the tree's structure only."""
    return not module.has_variable(COLLECTION, "past")


def apart(x: Array) -> Array:
    """Keep an array from being fused with what reads it, on a GPU."""
    return jax.lax.platform_dependent(x, cuda=jax.lax.optimization_barrier, default=lambda x: x)


def with_past(
    module: nn.Module, x: Float[Array, "B rows *rest"], length: int, *, first_length: int | None = None
) -> Float[Array, "B rows_past *rest"]:
    """Put the last `length` past rows in front of `x`, and store the new last ones.

    Args:
        module: The calling module, which owns the state; one state per module.
        x: The fresh rows.
        length: Rows to store.
        first_length: Rows of zeros in front of the very first call, if not `length`.
    """
    if is_first_call(module):
        rows = length if first_length is None else first_length
        past = jnp.zeros((x.shape[0], rows, *x.shape[2:]), x.dtype)
    else:
        past = module.get_variable(COLLECTION, "past")
    joined = jnp.concatenate([past, x], axis=1)
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        module.put_variable(COLLECTION, "past", joined[:, joined.shape[1] - length :])
    return joined
