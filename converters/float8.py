"""Float8 checkpoints: matrices with a scalar scale each, read as bfloat16; `--quantise float8` keeps them.

| who writes it | scale of `X.weight` | beside it |
|---|---|---|
| LTX-2 | `X.weight_scale` | `X.input_scale` |
| ComfyUI | `X.weight_scale` | `X.comfy_quant`, JSON in bytes; or `_quantization_metadata` in the header |
| ComfyUI before that | `X.scale_weight` | `X.scale_input`, and `scaled_fp8` for the whole file |

Scales of inputs belong to a kind of product that is not used here. A float8 matrix without a scale was only cast,
unless something beside it says that it was scaled. Whatever nests the keys, the names end like this.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from omniforcing_jax.strict_json import loads_object, require

from .lazy_tensor import LazyTensor

KINDS = {"float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2)}
FLOAT8 = tuple(KINDS.values())
RESULT = np.dtype(jnp.bfloat16)
SCALES = ("weight_scale", "scale_weight")
INPUT_SCALES = ("input_scale", "scale_input")
NOTE, MARK, METADATA = "comfy_quant", "scaled_fp8", "_quantization_metadata"
MARKED = re.compile(rf"(?:.*\.)?{MARK}")
LARGEST_NOTE = 1 << 16  # bytes
VALUES_AT_ONCE = 1 << 22  # in float32 at a time


def dequantise(
    tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None
) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Replace float8 matrices by the bfloat16 values that they encode; all other tensors stay unchanged.

    Args:
        tensors: All of a file's, by key.
        metadata: Of the file's header.

    Returns:
        The tensors without scales, and a note of what was done.

    Raises:
        ValueError: A scale is missing, given twice or not one positive finite number, or the values are of another
            kind than float8; names it.
    """
    quantised = [key for key, tensor in tensors.items() if tensor.dtype in FLOAT8]
    kinds = _read_kinds(tensors, metadata or {})
    marks = [key for key in tensors if MARKED.fullmatch(key)]
    used = {*marks, *(f"{module}.{NOTE}" for module in kinds if f"{module}.weight" in tensors)}
    result, scaled = dict(tensors), 0
    for key in quantised:
        if key in marks:
            continue
        module = key.removesuffix(".weight")
        scale = _find_scale(tensors, key)
        if scale is None and (module in kinds or (marks and key.endswith(".weight"))):
            said = f"{module}.{NOTE}" if module in kinds else marks[0]
            raise ValueError(f"{tensors[key].where}: missing {module}.{SCALES[0]}, {said} says that {key} was scaled")
        result[key] = _scale(tensors[key], 1.0 if scale is None else _read_scale(scale, tensors[scale]))
        scaled += scale is not None
        used |= {scale, *(f"{module}.{name}" for name in INPUT_SCALES)}
    count = len(set(quantised) - set(marks))
    notes = (f"{count} float8 tensors become {RESULT}, {scaled} of them scaled",) if count else ()
    return {key: tensor for key, tensor in result.items() if key not in used}, notes


def _read_kinds(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the kind of quantisation of each module that has one, by notes beside it and in the header.

    Raises:
        ValueError: A kind is not float8, is not that of the tensor, or cannot be read.
    """
    notes = {key.removesuffix(f".{NOTE}"): each for key, each in tensors.items() if key.endswith(f".{NOTE}")}
    kinds = {module: _kind(_read_note(module, tensor), module, tensor.where) for module, tensor in notes.items()}
    if METADATA in metadata and tensors:
        where = next(iter(tensors.values())).where
        layers = loads_object(metadata[METADATA], f"{where}: {METADATA}").get("layers", {})
        require(isinstance(layers, dict), f"{where}: {METADATA}.layers", layers, "must be an object")
        kinds |= {module: _kind(note, module, where) for module, note in layers.items()}
    for module, kind in kinds.items():
        tensor = tensors.get(f"{module}.weight")
        if tensor is not None and tensor.dtype != KINDS[kind]:
            raise ValueError(f"{tensor.where}: {module}.weight is {tensor.dtype}, its note says {kind}")
    return kinds


def _read_note(module: str, tensor: LazyTensor) -> Any:
    where = f"{tensor.where}: {module}.{NOTE}"
    if tensor.dtype != np.uint8 or tensor.nbytes > LARGEST_NOTE:
        raise ValueError(f"{where} is {tensor.dtype} of shape {tensor.shape}, expected JSON in a few bytes")
    return loads_object(np.asarray(tensor.load()).tobytes(), where)


def _kind(note: Any, module: str, where: str) -> str:
    kind = note.get("format") if isinstance(note, dict) else note
    if not isinstance(kind, str) or kind not in KINDS:
        rule = f"only {' and '.join(KINDS)} are read; take the file in bfloat16 or float8"
        raise ValueError(f"{where}: {module} is quantised as {kind!r}, {rule}")
    return kind


def _find_scale(tensors: Mapping[str, LazyTensor], key: str) -> str | None:
    """Return the key of a matrix's scale."""
    module = key.removesuffix("weight")
    found = [name for name in (f"{key}_scale", f"{module}{SCALES[1]}") if name in tensors]
    if len(found) > 1:
        raise ValueError(f"{tensors[key].where}: {key} has two scales, {' and '.join(found)}")
    return found[0] if found else None


def _read_scale(key: str, tensor: LazyTensor) -> float:
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.nbytes != tensor.dtype.itemsize:
        raise ValueError(f"{tensor.where}: {key} is {tensor.dtype} of shape {tensor.shape}, expected one number")
    scale = float(np.asarray(tensor.load()).astype(np.float64).reshape(()))
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"{tensor.where}: {key}={scale}: must be positive and finite")
    return scale


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A way to load a float8 matrix: a call returns its values times its scale."""

    values: LazyTensor
    scale: float

    def __call__(self) -> np.ndarray:
        """Widen it."""
        flat = self.values.load().reshape(-1)
        result = np.empty(flat.shape, RESULT)
        for begin in range(0, flat.size, VALUES_AT_ONCE):
            some = slice(begin, begin + VALUES_AT_ONCE)
            result[some] = flat[some].astype(np.float32) * np.float32(self.scale)
        return result.reshape(self.values.shape)


def _scale(tensor: LazyTensor, scale: float) -> LazyTensor:
    return dataclasses.replace(tensor, dtype=RESULT, load=Scaled(values=tensor, scale=scale))
