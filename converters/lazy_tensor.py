"""A tensor that is not read yet: its type, its shape, and how to read it.

A tensor of a safetensors file is mapped into memory, a window at a time where its bytes are only copied. A tensor that
is computed on the way (from float8, with a fused LoRA, with permuted rows) is lazy as well.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from omniforcing_jax.io.tensor_file import TensorFile

BLOCK = 8 << 20  # bytes handed on at a time


@runtime_checkable
class InBlocks(Protocol):
    """A way to load a tensor that can also read it block by block."""

    def __call__(self) -> np.ndarray:
        """Load all of it."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield flat pieces in memory order, at least one."""
        ...


@dataclass(frozen=True, kw_only=True)
class MappedTensor:
    """A tensor of a file, or one row of its leading axis. A call maps all of it."""

    file: TensorFile
    name: str
    row: int | None = None

    def __call__(self) -> np.ndarray:
        """Map it whole."""
        return self.file.view(self.name, self.row)

    def blocks(self) -> Iterator[np.ndarray]:
        """Map it block by block."""
        return self.file.windows(self.name, self.row, nbytes=BLOCK)


@dataclass(frozen=True)
class Rows:
    """A stack of tensors, each lazy. A call loads all of them."""

    rows: "tuple[LazyTensor, ...]"

    def __call__(self) -> np.ndarray:
        """Load and stack them."""
        return np.stack([row.load() for row in self.rows])

    def blocks(self) -> Iterator[np.ndarray]:
        """Load them one by one."""
        for row in self.rows:
            yield from row.blocks()


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor that is not read yet.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        where: The file it comes from, for messages.
        load: Returns the values, mapped or computed. Use them at once and let them go.
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
        """Yield the values in memory order, some megabytes at a time; at least one block, even an empty one."""
        return self.load.blocks() if isinstance(self.load, InBlocks) else cut_blocks(self.load())

    def row(self, index: int) -> "LazyTensor":
        """Return one row of the leading axis."""
        load = self.load
        if isinstance(load, Rows):
            return load.rows[index]
        if isinstance(load, MappedTensor) and load.row is None:
            return dataclasses.replace(self, shape=self.shape[1:], load=dataclasses.replace(load, row=index))
        return dataclasses.replace(self, shape=self.shape[1:], load=lambda: load()[index, ...])

    def map(self, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None) -> "LazyTensor":
        """Return the tensor with changed values of the same type; `shape` is the new one where it differs."""
        return dataclasses.replace(self, shape=self.shape if shape is None else shape, load=lambda: change(self.load()))


def wrap_array(array: np.ndarray, where: str) -> LazyTensor:
    """Make a lazy tensor of values that are in memory already."""
    return LazyTensor(dtype=array.dtype, shape=array.shape, where=where, load=lambda: array)


def list_tensors(file: TensorFile) -> dict[str, LazyTensor]:
    """List the tensors of a file by name."""
    return {
        name: LazyTensor(
            dtype=entry.dtype, shape=entry.shape, where=str(file.path), load=MappedTensor(file=file, name=name)
        )
        for name, entry in file.entries.items()
    }


def cut_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array into flat blocks, in memory order; an empty array is one empty block."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, BLOCK // flat.itemsize)
    for begin in range(0, max(1, flat.size), step):
        yield flat[begin : begin + step]
