"""Several safetensors files as one set of tensors: shards with their index, or the only file of a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.piece import Piece, pieces_of
from omniforcing_jax.io.tensor_file import TensorFile, open_tensors

INDEX = ".safetensors.index.json"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        ValueError: It is missing or holds something else; names the file.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object")
    return values


def open_folder(folder: Path) -> tuple[dict[str, Piece], dict[str, str]]:
    """Open what a folder holds: shards by their index, else its only safetensors file.

    Returns:
        The tensors by key, and the metadata of all headers together.

    Raises:
        ValueError: There is no index or more than one, or it contradicts the files; names file and key.
    """
    indices, files = sorted(folder.glob(f"*{INDEX}")), sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return open_shards(indices[0])
    if indices:
        raise ValueError(f"{folder}: {len(indices)} indices, expected one: {', '.join(path.name for path in indices)}")
    if len(files) != 1:
        raise ValueError(f"{folder}: {len(files)} safetensors files and no *{INDEX}")
    file = open_tensors(files[0])
    return pieces_of(file), dict(file.metadata)


def open_shards(index: Path) -> tuple[dict[str, Piece], dict[str, str]]:
    """Open the shards that an index lists; see `open_folder`."""
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: no weight_map of keys to files")
    outside = [name for name in places.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"{index}: {outside[0]} is not a file beside it")
    tensors: dict[str, Piece] = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(places.values())):
        file = open_tensors(index.parent / name)
        metadata |= file.metadata
        _compare_shard(file, {key for key, place in places.items() if place == name}, index)
        tensors |= pieces_of(file)
    return tensors, metadata


def _compare_shard(file: TensorFile, listed: set[str], index: Path) -> None:
    """Refuse a shard that has other tensors than its index says: one of them would be missing, or there twice."""
    for key in sorted(listed - set(file.entries)):
        raise ValueError(f"{file.path}: missing {key}, which {index.name} places there")
    for key in sorted(set(file.entries) - listed):
        raise ValueError(f"{file.path}: {key} is not placed there by {index.name}")
