"""The safetensors files of a folder as one set of tensors: shards with their index, or the only file."""

import re
from collections.abc import Mapping
from pathlib import Path

from omniforcing_jax.io.tensor_file import TensorFile, open_tensors
from omniforcing_jax.strict_json import read_object

from .lazy_tensor import LazyTensor, list_tensors

INDEX = ".safetensors.index.json"
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
CONTENTS = {  # of folders without safetensors, and what to do about them
    ("*.distcp", ".metadata"): (
        "is a distributed checkpoint of PyTorch; "
        "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt` makes a .pt file of it"
    ),
    ("zero_to_fp32.py", "mp_rank_*", "*_optim_states.pt"): (
        "is a checkpoint of DeepSpeed; its script zero_to_fp32 makes one file of it"
    ),
    ("*.bin", "*.bin.index.json"): (
        "has its weights in .bin files; `from_pretrained(FOLDER).save_pretrained(OTHER)` of its library writes "
        "safetensors"
    ),
    ("*.gguf",): "has GGUF files and no safetensors; name one file",
    ("*.pt", "*.pth", "*.ckpt"): "has PyTorch checkpoints and no safetensors; name one file",
    ("*.msgpack", "*.h5", "_METADATA", "manifest.ocdbt", "*.onnx", "*.npz"): (
        "has weights of another framework; bring safetensors"
    ),
}


def is_shard(name: str, has_index: bool = False) -> bool:
    """Tell whether a file is a part of a checkpoint; the only shard is the whole where no index lists it."""
    found = SHARD.fullmatch(name)
    return found is not None and (has_index or found[2] != "00001")


def open_folder(folder: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Open the shards of a folder by their index, or its only safetensors file.

    Returns:
        The tensors by key, and the metadata of all headers together.

    Raises:
        ValueError: There is no index or more than one, or it contradicts the files; names file and key.
    """
    indices, files = list_files(folder, f"*{INDEX}"), list_files(folder, "*.safetensors")
    if len(indices) == 1:
        return open_shards(indices[0])
    if indices:
        names = ", ".join(path.name for path in indices)
        raise ValueError(f"{folder}: has {len(indices)} indices of shards, expected one: {names}")
    if not files and (what := name_contents(folder)) is not None:
        raise ValueError(f"{folder}: {what}")
    if len(files) != 1:
        raise ValueError(f"{folder}: has {len(files)} safetensors files and no *{INDEX}; add it, or name one file")
    file = open_tensors(files[0])
    return list_tensors(file), dict(file.metadata)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """List files by the pattern of their names; hidden ones are notes of some system about the others."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def name_contents(folder: Path) -> str | None:
    """Say what a folder without safetensors has instead, and what to do; None if nothing is known of it."""
    for patterns, what in CONTENTS.items():
        if any(next(folder.glob(pattern), None) is not None for pattern in patterns):
            return what
    return None


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
