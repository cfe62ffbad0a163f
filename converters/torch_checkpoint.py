"""Training checkpoints of PyTorch: the student's state dict in them, read without running any code.

PyTorch itself reads them, memory-mapped and with `weights_only`, so it must be installed. Wrappers that training puts
into keys (FSDP, activation checkpointing, compilation) are removed. What is no state dict of plain tensors is named,
with what to do about it.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from omniforcing_jax.io.extras import need
from omniforcing_jax.io.foreign_file import HEAD, name_foreign, require_file
from omniforcing_jax.strict_json import shorten

from .lazy_tensor import LazyTensor

PICKLES = (".pt", ".pth", ".bin", ".ckpt")  # how names of PyTorch's files end
WhichState = Literal["ema", "trained"]
AVERAGED = ("generator_ema", "ema", "model_ema")
TRAINED = ("generator", "model", "student", "state_dict", "module")
STUDENTS = ("generator_ema", "generator", "student")  # only a distillation has these
WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")
BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how PyTorch's files before 1.6 begin
LARGEST_PICKLE = 256 << 20  # bytes; names and places of tensors, whose values are beside it
PLAIN = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")  # NumPy has these
VIEWED = {  # types that are read as others of their width
    "bfloat16": ("int16", np.dtype(ml_dtypes.bfloat16)),
    "float8_e4m3fn": ("uint8", np.dtype(ml_dtypes.float8_e4m3fn)),
    "float8_e5m2": ("uint8", np.dtype(ml_dtypes.float8_e5m2)),
}


@dataclass(frozen=True, kw_only=True)
class TorchCheckpoint:
    """The chosen state dict of a file.

    Attributes:
        tensors: By key.
        note: Which state was taken.
        has_generator: The file is a distillation's, so its network is a student.
    """

    tensors: dict[str, LazyTensor]
    note: str
    has_generator: bool


def open_torch_checkpoint(path: Path, state: WhichState | None) -> TorchCheckpoint:
    """Open a `.pt` file.

    Args:
        path: The file.
        state: Which weights to take from a file that has both: averaged, or last trained.

    Raises:
        ValueError: PyTorch is missing, the file is damaged or has more than tensors in it, or the choice is open.
    """
    chosen, key = _choose_state(_load(path), path, state)
    tensors: dict[str, LazyTensor] = {}
    for name, value in chosen.items():
        bare = WRAPPERS.sub("", str(name))
        if bare in tensors:
            raise ValueError(f"{path}: {bare} is given twice")
        tensors[bare] = _wrap_tensor(path, bare, value)
    note = "the whole file is one state dict" if key is None else f"state '{key}'"
    return TorchCheckpoint(tensors=tensors, note=note, has_generator=key in STUDENTS)


def _load(path: Path) -> Any:
    require_file(path)
    _check_archive(path)
    need("torch", extra="convert")
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {_explain(str(error))}") from None
    except Exception as error:  # a damaged pickle can raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read: {first}") from None


def _explain(error: str) -> str:
    """Say why PyTorch refuses a pickle, and what to do."""
    named = re.search(r"(?:Unsupported global: )?GLOBAL ([\w.]+)", error)
    what = f"it calls {named[1]}" if named else "it is damaged or runs code"
    rule = "a whole module or an optimiser cannot be read; save the module's state_dict() with torch.save"
    return f"the pickle holds more than tensors: {what}{f'; {rule}' if named else ''}"


def _check_archive(path: Path) -> None:
    """Check that a file is what torch.save writes, so that reading it takes no more memory than names need."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(BEFORE_ZIP):
        rule = "torch.save(torch.load(FILE, weights_only=True), FILE) writes it anew"
        raise ValueError(f"{path}: has PyTorch's format of before version 1.6; {rule}")
    if not zipfile.is_zipfile(path):
        other = None if head[:1] == b"\x80" else name_foreign(head)
        raise ValueError(f"{path}: {other or 'is no PyTorch checkpoint (not a zip archive), or is cut off'}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    for entry in entries:
        if "/code/" in entry.filename:
            raise ValueError(f"{path}: is TorchScript; save the module's state_dict() with torch.save")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: {entry.filename} is compressed, which no checkpoint of PyTorch is")
        if entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE:
            raise ValueError(f"{path}: {entry.filename} has {entry.file_size} bytes, expected at most {LARGEST_PICKLE}")


def _choose_state(loaded: Any, path: Path, state: WhichState | None) -> tuple[Mapping[Any, Any], str | None]:
    """Find the state dict that was asked for, and its name; None for a file that is one."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    states = {key: value for key, value in loaded.items() if isinstance(value, Mapping)}
    averaged = next((key for key in AVERAGED if key in states), None)
    trained = next((key for key in TRAINED if key in states), None)
    if averaged is None and trained is None:
        if states or not loaded:
            rule = f"none of {', '.join(AVERAGED + TRAINED)}"
            raise ValueError(f"{path}: has {shorten(sorted(map(str, states or loaded)))}, {rule}")
        return loaded, None
    if averaged is not None and trained is not None and state is None:
        raise ValueError(f"{path}: has '{averaged}' and '{trained}': choose with --state ema or --state trained")
    key = {None: averaged or trained, "ema": averaged, "trained": trained}[state]
    if key is None:
        raise ValueError(f"{path}: has {shorten(sorted(map(str, states)))}, none of them for --state {state}")
    return states[key], key


def _wrap_tensor(path: Path, key: str, tensor: Any) -> LazyTensor:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{path}: {key} is a {type(tensor).__name__}, expected a tensor")
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{path}: {key} is a nested, sparse or quantised tensor, expected a plain one")
    if tensor.is_meta:
        raise ValueError(f"{path}: {key} has no values, it is on PyTorch's device 'meta'; save the trained weights")
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in (*PLAIN, *VIEWED):
        raise ValueError(f"{path}: {key} is {name}, expected one of {', '.join((*PLAIN, *VIEWED))}")
    twin, dtype = VIEWED.get(name, (name, np.dtype(name)))

    def load() -> np.ndarray:
        return tensor.detach().contiguous().view(getattr(torch, twin)).numpy().view(dtype)

    return LazyTensor(dtype=dtype, shape=tuple(tensor.shape), where=str(path), load=load)
