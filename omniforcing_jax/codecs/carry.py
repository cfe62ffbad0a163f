"""What a streaming codec remembers of its past: the last rows each convolution saw.

The memory lives in the Linen collection `carry`, an explicit pytree at `apply`. There is no flag for "streaming":
a call without the collection starts at the true beginning (zeros before it), a call with it goes on where the last
one ended, and a call that makes it mutable gets the new memory back. A whole clip is a first call whose memory
nobody keeps.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

COLLECTION = "carry"


def is_first_call(module: nn.Module) -> bool:
    """Say whether this module has no past yet; static, since it is a matter of tree structure."""
    return not module.has_variable(COLLECTION, "past")


def with_past(
    module: nn.Module, x: Float[Array, "B T *rest"], length: int, *, first_length: int | None = None
) -> Float[Array, "B T_past *rest"]:
    """Put the last `length` rows of the past in front of `x`, and remember the new last ones.

    Args:
        module: The calling module, which owns the memory; one memory per module.
        x: The fresh rows.
        length: Rows that are remembered.
        first_length: Rows of zeros in front of the very first call, where that is not `length`.
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
