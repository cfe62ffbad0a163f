"""Arrays that are put together on the host only when they are read, one at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class HostArray:
    """Shape and type of an array, and how it is made; `np.asarray` makes it.

    Attributes:
        shape: Its sizes.
        dtype: Its type.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self._make = shape, np.dtype(dtype), make

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Make the array."""
        made = self._make()
        return made if dtype is None else made.astype(dtype, copy=False)

    @classmethod
    def stack(cls, rows: Sequence[Any]) -> "HostArray":
        """Stack arrays of one shape along a new first axis."""
        shape = (len(rows), *rows[0].shape)
        return cls(shape, rows[0].dtype, lambda: np.stack([np.asarray(row) for row in rows]))

    @classmethod
    def split(cls, whole: Any, parts: int) -> list["HostArray"]:
        """Cut an array into equal parts along its first axis."""
        length, *rest = whole.shape
        size = length // parts

        def part(index: int) -> "HostArray":
            rows = slice(index * size, (index + 1) * size)
            return cls((size, *rest), whole.dtype, lambda: np.asarray(whole)[rows])

        return [part(index) for index in range(parts)]
