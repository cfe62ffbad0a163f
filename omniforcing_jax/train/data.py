"""Endless shuffled batches whose position is part of a checkpoint.

A source is anything with `__len__` and `__getitem__`: a renderer, an array in memory, an ArrayRecord reader. Grain
shuffles it, repeats it and counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from omniforcing_jax.parallel import mesh as meshes

ROWS = 2**62  # of all batches of a run: more than any training reads


@runtime_checkable
class Source(Protocol):
    """Random access to examples, each a tree of NumPy arrays."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Make example `index`; equal indices give equal examples."""
        ...


class ArraySource:
    """Rows of equally long arrays held in memory."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        """Hold `arrays`, all with the same leading length.

        Raises:
            ValueError: If the leading lengths differ.
        """
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of different lengths: {lengths}")
        self._arrays = arrays

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return row `index` of every array."""
        return {name: array[index] for name, array in self._arrays.items()}


class Rows(Source):
    """Some rows of another source."""

    def __init__(self, source: Source, rows: Sequence[int]):
        """Choose rows by their numbers."""
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        """Make row `index`."""
        return self._source[self._rows[index]]


def hold_out(source: Source, share: float) -> tuple[Rows, Rows]:
    """Split a source into rows to learn from and a share that is held out, the same ones for every seed of a run."""
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    held = round(share * len(source))
    return Rows(source, sorted(order[held:])), Rows(source, sorted(order[:held]))


def stack_rows(source: Source, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Read rows of equal arrays by name into one batch."""
    read = [source[int(row)] for row in rows]
    return {name: np.stack([arrays[name] for arrays in read]) for name in read[0]}


def batches(source: Source, batch: int, seed: int, *, process: int = 0, processes: int = 1) -> Any:
    """Iterate for ever over shuffled batches of `source`.

    Args:
        source: What all processes see alike.
        batch: Rows of a batch, of all processes together.
        seed: Of the order.
        process: Which of `processes` this is: it reads that part of each batch, its rows side by side, so a batch is
            the same rows in the same order for any number of processes, and so is its position.
        processes: How many there are.

    Returns:
        A Grain iterator: `next` gives this process's rows of a batch, `get_state` and `set_state` its position.

    Raises:
        ValueError: If the source holds less than one batch, or the processes cannot share one equally.
    """
    import grain

    if len(source) < batch:
        raise ValueError(f"batch={batch}: the source holds {len(source)} examples only")
    if batch % processes:
        raise ValueError(f"batch={batch}: {processes} processes cannot share it equally")
    # Not for ever: Grain 0.2.18 counts batches, and as many rows as sys.maxsize overflow where a batch is one row.
    shuffled = grain.MapDataset.source(source).seed(seed).shuffle().repeat(ROWS // len(source))
    dataset = shuffled.batch(batch // processes)[process::processes]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


class PlacedBatches:
    """Batches on a mesh: each process reads the rows that its own devices hold.

    Args:
        source: What all processes see alike.
        batch: Rows of a batch, of all processes together.
        seed: Of the order.
        mesh: None leaves batches on the host, as `batches` does.

    Raises:
        ValueError: As `batches`, or if the mesh cannot spread the rows.
    """

    def __init__(self, source: Source, batch: int, seed: int, mesh: Mesh | None) -> None:
        self._batch, self._mesh = batch, mesh
        start, stop = (0, batch) if mesh is None else meshes.rows_here(batch, mesh)
        self._rows = batches(source, batch, seed, process=start // (stop - start), processes=batch // (stop - start))

    def __next__(self) -> Any:
        """Make the next batch."""
        return meshes.place_batch(next(self._rows), self._batch, self._mesh)

    def get_state(self) -> Any:
        """Return the position, the same in every process."""
        return self._rows.get_state()

    def set_state(self, position: Any) -> None:
        """Go to a position."""
        self._rows.set_state(position)


def ordered_batches(source: Source, batch: int, most: int, mesh: Mesh | None) -> Iterator[dict[str, Any]]:
    """Read a source's first rows in order, no more than `most` batches of them; the last one is filled up by its own.

    Args:
        source: Arrays by name, at least one row.
        batch: Rows of a batch, of all processes together.
        most: Number of batches.
        mesh: As for PlacedBatches.
    """
    start, stop = (0, batch) if mesh is None else meshes.rows_here(batch, mesh)
    for first in range(0, min(len(source), most * batch), batch):
        rows = np.resize(np.arange(first, min(first + batch, len(source))), batch)
        yield meshes.place_batch(stack_rows(source, rows[start:stop]), batch, mesh)
