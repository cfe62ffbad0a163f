"""Float8 checkpoints: matrices with a scalar scale each, turned back into bfloat16.

The scale of a matrix `X.weight` is `X.weight_scale`. `X.input_scale` belongs to a kind of product that is not used
here. A float8 matrix without a scale was only cast.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .lazy_tensor import LazyTensor

FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
RESULT = np.dtype(jnp.bfloat16)
SCALE, INPUT_SCALE = "_scale", "input_scale"
VALUES_AT_ONCE = 1 << 22  # in float32 at a time


def dequantise(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Replace float8 matrices by the bfloat16 values that they encode; all other tensors stay unchanged.

    Returns:
        The tensors without scales, and a note of what was done.

    Raises:
        ValueError: A scale is not one positive finite number; names it.
    """
    quantised = [key for key, tensor in tensors.items() if tensor.dtype in FLOAT8]
    scales = {key + SCALE for key in quantised} | {key.rpartition(".")[0] + f".{INPUT_SCALE}" for key in quantised}
    result = {key: tensor for key, tensor in tensors.items() if key not in scales}
    for key in quantised:
        scale = tensors.get(key + SCALE)
        result[key] = _scale(tensors[key], 1.0 if scale is None else _read_scale(key + SCALE, scale))
    scaled = sum(key + SCALE in tensors for key in quantised)
    return result, (f"{len(quantised)} float8 tensors become {RESULT}, {scaled} of them scaled",) if quantised else ()


def _read_scale(key: str, tensor: LazyTensor) -> float:
    if tensor.dtype != np.float32 or tensor.nbytes != 4:
        raise ValueError(f"{tensor.where}: {key} is {tensor.dtype} of shape {tensor.shape}, expected one float32")
    scale = float(np.asarray(tensor.load()).reshape(()))
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"{tensor.where}: {key}={scale}: must be positive and finite")
    return scale


def _scale(tensor: LazyTensor, scale: float) -> LazyTensor:
    def load() -> np.ndarray:
        flat = tensor.load().reshape(-1)
        result = np.empty(flat.shape, RESULT)
        for begin in range(0, flat.size, VALUES_AT_ONCE):
            some = slice(begin, begin + VALUES_AT_ONCE)
            result[some] = flat[some].astype(np.float32) * np.float32(scale)
        return result.reshape(tensor.shape)

    return LazyTensor(dtype=RESULT, shape=tensor.shape, where=tensor.where, load=load)
