"""Read tensors in a thread while those before them are written."""

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")
BlockReader = Callable[[str], Iterator[np.ndarray]]


def read_ahead(names: Iterable[str], read: BlockReader, count_bytes: Callable[[int], None]) -> BlockReader:
    """Read tensors one after the other, some blocks ahead of the writer.

    Args:
        names: The tensors, in the order in which they will be asked for.
        read: Returns the blocks of one of them, at least one.
        count_bytes: Called with the bytes of each block after its use.

    Returns:
        The function that `write_runs` asks for the blocks of a tensor.
    """
    groups = itertools.groupby(
        _in_thread((name, block) for name in names for block in read(name)), key=operator.itemgetter(0)
    )

    def blocks(name: str) -> Iterator[np.ndarray]:
        for _, block in next(groups)[1]:
            yield block
            count_bytes(block.nbytes)

    return blocks


def _in_thread(items: Iterator[T], depth: int = 8) -> Iterator[T]:
    """Make items in a thread while earlier ones are in use: checking values and writing them overlap."""
    with ThreadPoolExecutor(1) as worker:
        coming = deque(worker.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(worker.submit(next, items, None))
            yield item
