"""Safetensors files as their formats want them: order of keys, shards with an index, config.json beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing_jax.io import atomic_write
from omniforcing_jax.io.tensor_file import DTYPES, write_runs

from .lazy_tensor import LazyTensor
from .read_ahead import read_ahead

# The safetensors package writes types in this order, and the names of one type in alphabetical order.
TYPES = [
    "U64",
    "I64",
    "F64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "BOOL",
]
RANKS = {DTYPES[name]: rank for rank, name in enumerate(TYPES)}


@dataclass(frozen=True, kw_only=True)
class TensorFiles:
    """Tensors that go into one file, or into shards, of an exported folder.

    Attributes:
        folder: Subfolder of the output; "" for the output itself.
        stem: Name of the files, without shard numbers and ending.
        tensors: By key.
        metadata: Of each file's header.
        model_config: Contents of config.json; None for formats without one.
        tokenizer: Files for the folder `tokenizer`.
    """

    folder: str
    stem: str
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    model_config: Mapping[str, Any] | None = None
    tokenizer: tuple[Path, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_shards(folder: Path, files: TensorFiles, shard_bytes: int, count_bytes: Callable[[int], None]) -> None:
    """Write files of at most `shard_bytes` each, an index if there are several, and config.json."""
    folder.mkdir(exist_ok=True)
    shards = _cut(files.tensors, shard_bytes)
    file_of: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        marks = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"{files.stem}{marks}.safetensors"
        file_of |= dict.fromkeys(keys, name)
        layout = {key: (files.tensors[key].dtype, files.tensors[key].shape) for key in keys}
        blocks = read_ahead(keys, lambda key: files.tensors[key].blocks(), count_bytes)
        write_runs(folder / name, layout, blocks, files.metadata)
    if len(shards) > 1:
        index = {"metadata": {"total_size": files.nbytes}, "weight_map": file_of}
        atomic_write.write_json(folder / f"{files.stem}.safetensors.index.json", index)
    if files.model_config is not None:
        atomic_write.write_json(folder / "config.json", files.model_config)


def _cut(tensors: Mapping[str, LazyTensor], shard_bytes: int) -> list[list[str]]:
    """Order keys as the safetensors package does, widest types first and then by name, and cut them into files."""
    keys = sorted(tensors, key=lambda key: (RANKS[tensors[key].dtype], key))
    shards: list[list[str]] = [[]]
    filled = 0
    for key in keys:
        if shards[-1] and filled + tensors[key].nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += tensors[key].nbytes
    return shards
