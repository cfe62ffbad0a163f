"""One tensor of a source that is not read yet: type, shape, and how to look at it.

From a safetensors file it is mapped, so looking at it costs no memory of ours; what is computed on the way (a
dequantised or fused matrix, a permuted one) is a piece as well.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.tensor_file import TensorFile

CHUNK = 1 << 20  # bytes looked at in one go: stays in a core's cache
FLOATS = {  # an exponent of ones is infinity or NaN: the bits of a value without its sign, and of its exponent
    np.dtype(np.float16): (np.uint16, 0x7FFF, 0x7C00),
    np.dtype(jnp.bfloat16): (np.uint16, 0x7FFF, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float64): (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor of a source.

    Attributes:
        dtype: Its type.
        shape: Its sizes.
        where: The file it comes from, for messages.
        load: Returns it, mapped or computed, to be looked at once and let go.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    where: str
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def pieces_of(file: TensorFile) -> dict[str, Piece]:
    """List the tensors of a file."""
    return {
        name: Piece(dtype=entry.dtype, shape=entry.shape, where=str(file.path), load=lambda key=name: file.view(key))
        for name, entry in file.entries.items()
    }


def is_float(dtype: np.dtype) -> bool:
    """Whether a weight may rest in this type: floating, and wide enough to be used as it is."""
    return dtype in FLOATS


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array into pieces that stay in the cache, in memory order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, CHUNK // flat.itemsize)
    for begin in range(0, flat.size, step):
        yield flat[begin : begin + step]


def finite_chunks(array: np.ndarray, name: str, where: str) -> Iterator[np.ndarray]:
    """Cut an array as `chunks` does and look at every value.

    Raises:
        ValueError: It holds a NaN or an infinity; names tensor and file.
    """
    integer, magnitude, exponent = FLOATS[array.dtype]
    scratch = np.empty(CHUNK // array.itemsize, integer)
    for chunk in chunks(array):
        bits = np.bitwise_and(chunk.view(integer), integer(magnitude), out=scratch[: chunk.size])
        if bits.size and bits.max() >= exponent:
            raise ValueError(f"{where}: {name} has values that are not finite")
        yield chunk
