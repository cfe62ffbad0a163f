"""One tensor of a source that is not read yet: type, shape, and how to look at it.

From a safetensors file it is mapped, a window at a time where its bytes are to be copied; what is computed on the way
(a dequantised or fused matrix, a permuted one) is a piece as well.
"""

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io.tensor_file import TensorFile

CHUNK = 1 << 20  # bytes looked at in one go: stays in a core's cache
BLOCK = 8 * CHUNK  # bytes handed on in one go
T = TypeVar("T")
FLOATS = {  # types of the same bits with and without a sign, and the bits of infinity: it and the NaNs have the largest
    np.dtype(np.float16): (np.int16, np.uint16, 0x7C00),
    np.dtype(jnp.bfloat16): (np.int16, np.uint16, 0x7F80),
    np.dtype(np.float32): (np.int32, np.uint32, 0x7F800000),
    np.dtype(np.float64): (np.int64, np.uint64, 0x7FF0000000000000),
}


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A tensor of a file, or one row of its leading axis; a call maps all of it."""

    file: TensorFile
    name: str
    row: int | None = None

    def __call__(self) -> np.ndarray:
        """Map it whole."""
        return self.file.view(self.name, self.row)

    def blocks(self) -> Iterator[np.ndarray]:
        """Map it block by block."""
        return self.file.windows(self.name, self.row, nbytes=BLOCK)


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

    def blocks(self) -> Iterator[np.ndarray]:
        """Look at its values in memory order, some megabytes at a time; at least one block, if an empty one."""
        return self.load.blocks() if isinstance(self.load, Mapped) else blocks(self.load())


def pieces_of(file: TensorFile) -> dict[str, Piece]:
    """List the tensors of a file."""
    return {
        name: Piece(dtype=entry.dtype, shape=entry.shape, where=str(file.path), load=Mapped(file=file, name=name))
        for name, entry in file.entries.items()
    }


def is_float(dtype: np.dtype) -> bool:
    """Whether a weight may rest in this type: floating, and wide enough to be used as it is."""
    return dtype in FLOATS


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array into flat blocks, in memory order; an empty array is one empty block."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, BLOCK // flat.itemsize)
    for begin in range(0, max(flat.size, 1), step):
        yield flat[begin : begin + step]


def finite(values: Iterable[np.ndarray], name: str, where: str) -> Iterator[np.ndarray]:
    """Hand blocks on, having looked at every value.

    Raises:
        ValueError: There is a NaN or an infinity; names tensor and file.
    """
    for block in values:
        if not _is_finite(block):
            raise ValueError(f"{where}: {name} has values that are not finite")
        yield block


def _is_finite(block: np.ndarray) -> bool:
    """Whether no value is infinite or a NaN: they are the largest as signed bits, their negatives as unsigned ones."""
    signed, unsigned, infinity = FLOATS[block.dtype]
    sign = np.iinfo(signed).max + 1
    step = CHUNK // block.itemsize
    chunks = (block[begin : begin + step] for begin in range(0, block.size, step))
    return all(c.view(signed).max() < infinity and c.view(unsigned).max() < sign + infinity for c in chunks)


def ahead(items: Iterator[T], depth: int = 8) -> Iterator[T]:
    """Make items in a thread while earlier ones are used: looking at values and writing them overlap."""
    with ThreadPoolExecutor(1) as worker:
        coming = deque(worker.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(worker.submit(next, items, None))
            yield item


def read_ahead(
    names: Iterable[str], read: Callable[[str], Iterator[np.ndarray]], told: Callable[[int], None]
) -> Callable[[str], Iterator[np.ndarray]]:
    """Read tensors in a thread, one after the other, while those before them are written.

    Args:
        names: The tensors, in the order in which they will be asked for.
        read: Gives the blocks of one of them; at least one.
        told: Takes note of bytes that were used up.

    Returns:
        What `write_runs` asks for the blocks of a tensor.
    """
    groups = itertools.groupby(
        ahead((name, block) for name in names for block in read(name)), key=operator.itemgetter(0)
    )

    def runs(name: str) -> Iterator[np.ndarray]:
        for _, block in next(groups)[1]:
            yield block
            told(block.nbytes)

    return runs
