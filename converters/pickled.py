"""Training checkpoints of PyTorch: the student's state dict inside, read without running any code.

PyTorch itself reads them, mapped and with `weights_only`, so it must be installed. Wrappers that training puts into
keys (FSDP, activation checkpointing, compilation) are taken out. Source: specs/omniforcing.md 4.5, 8.2.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from converters.piece import Piece

State = Literal["ema", "trained"]
AVERAGED = ("generator_ema", "ema", "model_ema")
TRAINED = ("generator", "model", "student", "state_dict")
WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")


def open_pickle(path: Path, state: State | None) -> tuple[dict[str, Piece], tuple[str, ...]]:
    """Open a `.pt` file.

    Args:
        path: The file.
        state: Of a file that has both: the averaged weights or those last trained.

    Returns:
        The tensors by key, and which state was taken, in words.

    Raises:
        ValueError: PyTorch is missing, the file is damaged or has more than tensors in it, or the choice is open.
    """
    chosen, note = _choose_state(_load(path), path, state)
    tensors: dict[str, Piece] = {}
    for key, value in chosen.items():
        bare = WRAPPERS.sub("", str(key))
        if not hasattr(value, "untyped_storage"):
            raise ValueError(f"{path}: {key} is a {type(value).__name__}, expected a tensor")
        if bare in tensors:
            raise ValueError(f"{path}: {bare} is given twice")
        tensors[bare] = _piece(path, bare, value)
    return tensors, note


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path}: reading it needs PyTorch, which is not installed") from None
    import pickle
    import zipfile

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a checkpoint of PyTorch (no zip archive), or cut off")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:Unsupported global: )?GLOBAL ([\w.]+)", str(error))
        what = f"it calls {named[1]}" if named else "it is damaged or runs code"
        raise ValueError(f"{path}: the pickle holds more than tensors: {what}") from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _choose_state(loaded: Any, path: Path, state: State | None) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Find the state dict that is asked for."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    states = {key: value for key, value in loaded.items() if isinstance(value, Mapping)}
    averaged = next((key for key in AVERAGED if key in states), None)
    trained = next((key for key in TRAINED if key in states), None)
    if averaged is None and trained is None:
        if states or not loaded:
            raise ValueError(f"{path}: has {sorted(map(str, loaded))}, none of {', '.join(AVERAGED + TRAINED)}")
        return loaded, ("the whole file is one state dict",)
    if averaged is not None and trained is not None and state is None:
        raise ValueError(f"{path}: has '{averaged}' and '{trained}': choose with --state ema or --state trained")
    key = {None: averaged or trained, "ema": averaged, "trained": trained}[state]
    if key is None:
        raise ValueError(f"{path}: has {sorted(map(str, states))}, none of them for --state {state}")
    return states[key], (f"state '{key}'",)


def _piece(path: Path, key: str, tensor: Any) -> Piece:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{path}: {key} is a sparse or quantised tensor, expected a plain one")
    own = tensor.dtype
    is_brain = own == torch.bfloat16
    dtype = np.dtype(jnp.bfloat16) if is_brain else tensor.new_empty(0).numpy().dtype

    def load() -> np.ndarray:
        plain = tensor.detach().contiguous()
        return plain.view(torch.int16).numpy().view(dtype) if is_brain else plain.numpy()

    return Piece(dtype=dtype, shape=tuple(tensor.shape), where=str(path), load=load)
