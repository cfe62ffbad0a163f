"""GGUF files: quantised tensors become what they stand for, a few megabytes at a time.

The package `gguf` reads the header and knows every kind of quantisation. Quantised kinds become bfloat16. Other types
stay as they are, unless a tensor's layers have different ones; then those become bfloat16 as well.

Source: gguf@0.19.0:gguf_reader.py; gguf@0.19.0:quants.py.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io.extras import need

from .lazy_tensor import LazyTensor

RESULT = np.dtype(jnp.bfloat16)
VALUES_AT_ONCE = 1 << 22  # in float32 at a time
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
PLAIN = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8, "I16": np.int16, "I32": np.int32}
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF's field for tensors of more axes than ggml has


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A GGUF file.

    Attributes:
        path: The file.
        fields: Its metadata: numbers, texts and lists.
        tensors: Its tensors by name, in PyTorch's order of axes, dequantised when they are read.
        notes: What was done, in words.
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QuantisedTensor:
    """A tensor that `gguf` dequantises.

    Attributes:
        path: The file.
        offset: Its first byte.
        kind: Number of ggml's type.
        rows: Its shape as a matrix of bytes: rows of whole quantised blocks.
        shape: Its shape in values.
    """

    path: Path
    offset: int
    kind: Any
    rows: tuple[int, int]
    shape: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        """Dequantise all of it."""
        return np.concatenate(list(self.blocks())).reshape(self.shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """Dequantise some rows at a time."""
        from gguf.quants import dequantize

        count, width = self.rows
        step = max(1, VALUES_AT_ONCE // max(1, self.shape[-1]))
        for begin in range(0, max(1, count), step):
            some = min(step, count - begin)
            raw = _map_bytes(self.path, self.offset + begin * width, some * width).reshape(some, width)
            yield dequantize(raw, self.kind).reshape(-1).astype(RESULT)


def _map_bytes(path: Path, offset: int, count: int) -> np.ndarray:
    return np.array(np.memmap(path, np.uint8, "r", offset, (count,))) if count else np.zeros(0, np.uint8)


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file. Only its header is read.

    Raises:
        ValueError: The package `gguf` or the file is missing, the file is damaged, or `gguf` cannot dequantise a kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        reader = _make_reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not _is_vocabulary(name)}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{path}: cannot be read as GGUF: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None
    _check_whole(path, fields, reader.byte_order)
    tensors = {each.name: _wrap(path, each, fields) for each in reader.tensors}
    kinds = Counter(each.tensor_type.name for each in reader.tensors)
    note = f"GGUF with tensors of {', '.join(f'{kind} ({count})' for kind, count in sorted(kinds.items()))}"
    tensors, mixed = _unify_layers(tensors)
    is_changed = mixed or any(isinstance(each.load, QuantisedTensor) for each in tensors.values())
    return GgufFile(
        path=path,
        fields=fields,
        tensors=tensors,
        notes=(f"{note}; quantised ones become {RESULT}" if is_changed else note,),
    )


def _make_reader(path: Path) -> Any:
    """Read the header. `gguf` slices its map of the file for each of a million pieces of a vocabulary.

    Slices of a plain array take a third of the time and half of the memory of those of a `numpy.memmap`.
    """
    need("gguf", extra="convert")
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return PlainReader(path)


def _check_whole(path: Path, fields: Mapping[str, Any], order: str) -> None:
    if (count := fields.get("split.count", 0)) > 1:
        rule = "join them with llama.cpp's `llama-gguf-split --merge`"
        raise ValueError(f"{path}: is one of {count} parts; {rule}")
    if order != "I":
        raise ValueError(f"{path}: has the byte order of another machine; make it anew for this one")


def _is_vocabulary(name: str) -> bool:
    return name.startswith("tokenizer.")


def _wrap(path: Path, tensor: Any, fields: Mapping[str, Any]) -> LazyTensor:
    """Describe one tensor; its axes are in ggml's order, the innermost first."""
    axes = fields.get(f"{ORIGINAL_SHAPE}{tensor.name}", tensor.shape[::-1].tolist())
    shape, kind = tuple(int(size) for size in axes), tensor.tensor_type
    if np.prod(shape, dtype=np.int64) != tensor.n_elements:
        raise ValueError(f"{path}: {tensor.name} has {tensor.n_elements} values, its recorded shape is {shape}")
    if kind.name == "BF16" or kind.name in PLAIN:
        dtype = np.dtype(PLAIN.get(kind.name, RESULT))
        offset, count = int(tensor.data_offset), int(tensor.n_bytes)
        return LazyTensor(
            dtype=dtype,
            shape=shape,
            where=str(path),
            load=lambda: _map_bytes(path, offset, count).view(dtype).reshape(shape),
        )
    _check_kind(path, tensor)
    load = QuantisedTensor(
        path=path,
        offset=int(tensor.data_offset),
        kind=kind,
        rows=(tensor.data.size // tensor.data.shape[-1], tensor.data.shape[-1]),
        shape=shape,
    )
    return LazyTensor(dtype=RESULT, shape=shape, where=str(path), load=load)


def _check_kind(path: Path, tensor: Any) -> None:
    """Try a row of zeros, so that an unknown kind is found before any work."""
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, tensor.data.shape[-1]), np.uint8), tensor.tensor_type)
    except (NotImplementedError, ValueError):
        kind = tensor.tensor_type.name
        raise ValueError(f"{path}: {tensor.name} is {kind}, which this version of gguf cannot dequantise") from None


def _unify_layers(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], bool]:
    """Give all layers of a tensor one type."""
    types: dict[str, set[np.dtype]] = defaultdict(set)
    for key, tensor in tensors.items():
        types[NUMBER.sub("*", key)].add(tensor.dtype)
    mixed = {pattern for pattern, found in types.items() if len(found) > 1}
    result = {key: _cast(each) if NUMBER.sub("*", key) in mixed else each for key, each in tensors.items()}
    return result, bool(mixed)


def _cast(tensor: LazyTensor) -> LazyTensor:
    load: Callable[[], np.ndarray] = tensor.load
    if tensor.dtype == RESULT:
        return tensor
    return dataclasses.replace(tensor, dtype=RESULT, load=lambda: load().astype(RESULT))
