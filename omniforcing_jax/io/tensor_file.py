"""Read and write a safetensors file: its header, byte ranges of its tensors, and runs of bytes.

Opening a file reads only its header. A slice along the leading axis is one run of bytes. The safetensors package has no
slices in bfloat16 for NumPy, and it writes a file from memory as a whole; hence this module. It knows nothing of the
meaning of tensors.

Source: the safetensors format (8 bytes of length, JSON, little-endian row-major data).
"""

import ctypes
import errno
import io
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.foreign_file import HEAD, name_foreign, require_file
from omniforcing_jax.strict_json import LARGEST, loads_object

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_POPULATED = 1 << 28  # bytes; mapped pages count as memory of the process
MOST_AXES = 64  # of an array
WRITTEN_AT_ONCE = 1 << 16  # bytes; Linux keeps larger writes in larger pages, which can take far longer to find

Index = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file: dtype, shape and the position of its first byte."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A checked header: the tensors of a file by name, and its free text."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Read one tensor or a slice of it. Only the bytes of the slice are read.

        Args:
            name: The tensor.
            index: One slice per leading axis, as `jax.make_array_from_callback` passes them; empty for the whole
                tensor.

        Returns:
            A writable array of its own, in the dtype of the file.
        """
        entry = self.entries[name]
        if entry.nbytes == 0:
            return np.zeros(entry.shape, entry.dtype)[index]
        return np.array(np.memmap(self.path, entry.dtype, "r", entry.offset, entry.shape)[index])

    def view(self, name: str, row: int | None = None) -> np.ndarray:
        """Map one tensor, or one row of its leading axis. The mapping ends with the array.

        If the system can, all pages are mapped in one call: page faults one by one take longer than a copy.

        Args:
            name: The tensor.
            row: Index on the leading axis.

        Returns:
            A read-only array in the dtype of the file.
        """
        shape, begin, count = self._locate(name, row)
        return self._map(self.entries[name].dtype, begin, count).reshape(shape)

    def windows(self, name: str, row: int | None = None, *, nbytes: int) -> Iterator[np.ndarray]:
        """Map one tensor, or one row of its leading axis, piece by piece. Only pieces in use take memory.

        Args:
            name: The tensor.
            row: Index on the leading axis.
            nbytes: Largest size of a piece in bytes.

        Yields:
            Flat read-only arrays in the dtype of the file, in order; at least one.
        """
        dtype = self.entries[name].dtype
        _, begin, count = self._locate(name, row)
        step = max(1, nbytes // dtype.itemsize)
        for first in range(0, max(count, 1), step):
            yield self._map(dtype, begin + first * dtype.itemsize, min(step, count - first))

    def _locate(self, name: str, row: int | None) -> tuple[tuple[int, ...], int, int]:
        """Return shape, first byte in the file and number of values of a tensor or a row."""
        entry = self.entries[name]
        shape = entry.shape if row is None else entry.shape[1:]
        count = math.prod(shape)
        return shape, entry.offset + (row or 0) * count * entry.dtype.itemsize, count

    def _map(self, dtype: np.dtype, begin: int, count: int) -> np.ndarray:
        if count == 0:
            return np.zeros(0, dtype)
        skip = begin % mmap.ALLOCATIONGRANULARITY
        size = skip + count * dtype.itemsize
        flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if size <= LARGEST_POPULATED else 0)
        with self.path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ, offset=begin - skip)
        return np.frombuffer(pages, dtype, count, skip)


def open_tensors(path: AnyPath) -> TensorFile:
    """Read and check the header of a safetensors file.

    Raises:
        ValueError: If the file is missing, truncated or not safetensors, or if a tensor has two entries, an unknown
            dtype, or does not fill its bytes; names file and tensor.
    """
    path = Path(path)
    require_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEAD)
            if head[8:9] != b"{" and (what := name_foreign(head)) is not None:
                raise ValueError(what)
            file.seek(0)
            header, start = _read_header(file.read, size)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ is not an object of strings; the file is damaged")
        return TensorFile(path=path, entries=_read_entries(header, start, size), metadata=metadata)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_header(read: Callable[[int], bytes], size: int) -> tuple[dict[str, Any], int]:
    """Parse length and JSON. Return the header and the file position of the data."""
    length = int.from_bytes(read(8), "little") if size >= 8 else -1
    if not 0 <= length <= min(LARGEST, size - 8):
        raise ValueError(f"not a safetensors file, or cut off in its header ({size} bytes)")
    return loads_object(read(length), "the header, which may be damaged"), 8 + length


def _read_entries(header: Mapping[str, Any], start: int, size: int) -> dict[str, Entry]:
    """Check that the tensors fill the data part of the file without gap or overlap."""
    entries, spans = {}, []
    for name, value in header.items():
        try:
            dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"'{name}' lacks dtype, shape or data_offsets; the file is damaged") from None
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError(f"'{name}' has a shape or data_offsets that are not counts; the file is damaged")
        if len(shape) > MOST_AXES:
            raise ValueError(f"'{name}' has {len(shape)} axes, an array has at most {MOST_AXES}")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"'{name}' has dtype {dtype}, which is not one of {', '.join(DTYPES)}")
        entries[name] = Entry(dtype=DTYPES[dtype], shape=shape, offset=start + begin)
        if end - begin != entries[name].nbytes:
            raise ValueError(f"'{name}' of shape {shape} in {dtype} does not fill its {end - begin} bytes")
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ValueError(f"'{name}' begins at byte {begin} of the data, expected {position}")
        position = end
    if position != size - start:
        raise ValueError(f"the tensors need {position} bytes, the file has {size - start}; it is cut off or damaged")
    return entries


def write_tensors(
    path: AnyPath,
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    get: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file tensor by tensor, with one of them in memory at a time.

    Args:
        path: The file; written in place (callers rename).
        layout: Dtype and shape by name, in the order of the file.
        get: Returns the tensor of a name, in that dtype and shape.
        metadata: Free text of the file.

    Raises:
        ValueError: If the format lacks a dtype; names the tensor.
    """
    write_runs(path, layout, lambda name: [get(name)], metadata)


def write_runs(
    path: AnyPath,
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    runs: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
    hashed: Callable[[bytes | memoryview], object] | None = None,
) -> None:
    """Write a safetensors file whose tensors come in runs of bytes, one after the other.

    Args:
        path: As in `write_tensors`.
        layout: As in `write_tensors`.
        runs: Returns arrays that, one after the other in memory order, fill the tensor of a name.
        metadata: As in `write_tensors`.
        hashed: Takes all bytes of the file in their order.

    Raises:
        ValueError: If the format lacks a dtype, or if runs do not fill their tensor or have another dtype; names the
            tensor.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in layout.items():
        if dtype not in NAMES:
            raise ValueError(f"'{name}' is {dtype}, which safetensors cannot hold")
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, so every dtype is aligned
    with Path(path).open("wb", buffering=0) as file:
        _reserve(file, 8 + len(text) + position)
        _write_all(file, len(text).to_bytes(8, "little") + text, hashed)
        for name in layout:
            begin, end = header[name]["data_offsets"]
            dtype = layout[name][0]
            written = sum(_write_all(file, as_bytes(_check_type(run, dtype, name)), hashed) for run in runs(name))
            if written != end - begin:
                raise ValueError(f"'{name}' got {written} bytes, expected {end - begin}")


def _check_type(run: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Types of one width would be taken for each other."""
    if run.dtype != dtype:
        raise ValueError(f"'{name}' got values in {run.dtype}, expected {dtype}")
    return run


def as_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array in row-major order, as a file has them. Copies only if memory has another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _reserve(file: io.FileIO, nbytes: int) -> None:
    """Reserve the space of a file in one call, if the file system can: that is faster than piece by piece.

    `os.posix_fallocate` is no alternative: on other file systems it writes into every page.

    Raises:
        OSError: If there is no space left.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None) if sys.platform == "linux" else None
    if fallocate is None:
        return
    if fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)) and ctypes.get_errno() == errno.ENOSPC:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def _write_all(file: io.FileIO, data: bytes | memoryview, hashed: Callable[[bytes | memoryview], object] | None) -> int:
    """Write without a buffer. The system may take less at a time than it is offered."""
    if hashed is not None:
        hashed(data)
    left, position = memoryview(data), file.tell()
    while left.nbytes:
        taken = file.write(left[: WRITTEN_AT_ONCE - position % WRITTEN_AT_ONCE])
        left, position = left[taken:], position + taken
    return len(data)
