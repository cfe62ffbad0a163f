"""One tensor of a source that is not read yet: type, shape, and how to look at it.

From a safetensors file it is mapped, so looking at it costs no memory of ours; what is computed on the way (a
dequantised or fused matrix, a permuted one) is a piece as well.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.tensor_file import TensorFile

CHUNK = 1 << 20  # bytes looked at in one go: stays in a core's cache
BLOCK = 8 * CHUNK  # bytes handed on in one go
T = TypeVar("T")
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


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array into blocks, in memory order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, BLOCK // flat.itemsize)
    for begin in range(0, flat.size, step):
        yield flat[begin : begin + step]


def finite_blocks(array: np.ndarray, name: str, where: str) -> Iterator[np.ndarray]:
    """Cut an array as `blocks` does and look at every value.

    Raises:
        ValueError: It holds a NaN or an infinity; names tensor and file.
    """
    integer, magnitude, exponent = FLOATS[array.dtype]
    scratch = np.empty(CHUNK // array.itemsize, integer)
    for block in blocks(array):
        bits = block.view(integer)
        for begin in range(0, bits.size, scratch.size):
            chunk = bits[begin : begin + scratch.size]
            if np.bitwise_and(chunk, integer(magnitude), out=scratch[: chunk.size]).max() >= exponent:
                raise ValueError(f"{where}: {name} has values that are not finite")
        yield block


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Make items in a thread while earlier ones are used: looking at values and writing them overlap."""
    with ThreadPoolExecutor(1) as worker:
        coming = deque(worker.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(worker.submit(next, items, None))
            yield item
