"""The safetensors files of a folder as one set of tensors: shards with their index, or the only file."""

from collections.abc import Mapping
from pathlib import Path

from omniforcing_jax.io.tensor_file import TensorFile, open_tensors
from omniforcing_jax.strict_json import read_object

from .lazy_tensor import LazyTensor, list_tensors

INDEX = ".safetensors.index.json"


def open_folder(folder: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Open the shards of a folder by their index, or its only safetensors file.

    Returns:
        The tensors by key, and the metadata of all headers together.

    Raises:
        ValueError: There is no index or more than one, or it contradicts the files; names file and key.
    """
    indices, files = sorted(folder.glob(f"*{INDEX}")), sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return open_shards(indices[0])
    if indices:
        names = ", ".join(path.name for path in indices)
        raise ValueError(f"{folder}: has {len(indices)} indices of shards, expected one: {names}")
    if len(files) != 1:
        raise ValueError(f"{folder}: has {len(files)} safetensors files and no *{INDEX}; add it, or name one file")
    file = open_tensors(files[0])
    return list_tensors(file), dict(file.metadata)


def open_shards(index: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Open the shards that an index lists; see `open_folder`."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: must have a weight_map of keys to names of files")
    outside = [name for name in places.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"{index}: names {outside[0]}, must be a file in the same folder")
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(places.values())):
        file = open_tensors(index.parent / name)
        metadata |= file.metadata
        _compare_shard(file, {key for key, place in places.items() if place == name}, index)
        tensors |= list_tensors(file)
    return tensors, metadata


def _compare_shard(file: TensorFile, listed: set[str], index: Path) -> None:
    """Refuse a shard whose tensors differ from the index: a tensor would be missing, or be there twice."""
    for key in sorted(listed - set(file.entries)):
        raise ValueError(f"{file.path}: missing {key}, which {index.name} lists there")
    for key in sorted(set(file.entries) - listed):
        raise ValueError(f"{file.path}: has {key}, which {index.name} does not list there")
