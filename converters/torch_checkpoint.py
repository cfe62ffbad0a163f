"""Training checkpoints of PyTorch: the student's state dict in them, read without running any code.

PyTorch itself reads them, memory-mapped and with `weights_only`, so it must be installed. Wrappers that training puts
into keys (FSDP, activation checkpointing, compilation) are removed.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io.extras import need

from .lazy_tensor import LazyTensor

WhichState = Literal["ema", "trained"]
AVERAGED = ("generator_ema", "ema", "model_ema")
TRAINED = ("generator", "model", "student", "state_dict")
WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")


def open_torch_checkpoint(path: Path, state: WhichState | None) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Open a `.pt` file.

    Args:
        path: The file.
        state: Which weights to take from a file that has both: averaged, or last trained.

    Returns:
        The tensors by key, and a note of the state that was taken.

    Raises:
        ValueError: PyTorch is missing, the file is damaged or has more than tensors in it, or the choice is open.
    """
    chosen, note = _choose_state(_load(path), path, state)
    tensors: dict[str, LazyTensor] = {}
    for key, value in chosen.items():
        bare = WRAPPERS.sub("", str(key))
        if not hasattr(value, "untyped_storage"):
            raise ValueError(f"{path}: {key} is a {type(value).__name__}, expected a tensor")
        if bare in tensors:
            raise ValueError(f"{path}: {bare} is given twice")
        tensors[bare] = _wrap_tensor(path, bare, value)
    return tensors, note


def _load(path: Path) -> Any:
    need("torch", extra="convert")
    import torch

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is no PyTorch checkpoint (not a zip archive), or is cut off")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:Unsupported global: )?GLOBAL ([\w.]+)", str(error))
        what = f"it calls {named[1]}" if named else "it is damaged or runs code"
        raise ValueError(f"{path}: the pickle holds more than tensors: {what}") from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _choose_state(loaded: Any, path: Path, state: WhichState | None) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Find the state dict that was asked for."""
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


def _wrap_tensor(path: Path, key: str, tensor: Any) -> LazyTensor:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{path}: {key} is a sparse or quantised tensor, expected a plain one")
    is_bfloat16 = tensor.dtype == torch.bfloat16
    dtype = np.dtype(jnp.bfloat16) if is_bfloat16 else tensor.new_empty(0).numpy().dtype

    def load() -> np.ndarray:
        plain = tensor.detach().contiguous()
        return plain.view(torch.int16).numpy().view(dtype) if is_bfloat16 else plain.numpy()

    return LazyTensor(dtype=dtype, shape=tuple(tensor.shape), where=str(path), load=load)
