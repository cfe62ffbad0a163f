"""Float8 checkpoints: matrices beside a scalar scale, turned back into bfloat16.

The scale of a matrix `X.weight` is `X.weight_scale`; `X.input_scale` belongs to a way of multiplying that is not used
here. A float8 matrix without a scale was only cast. Source: specs/ltx2.md 1.2.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from converters.piece import Piece

FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
RESULT = np.dtype(jnp.bfloat16)
SCALE, INPUT_SCALE = "_scale", "input_scale"
ROWS_AT_ONCE = 1 << 22  # values that are in float32 at a time


def dequantise(tensors: Mapping[str, Piece]) -> tuple[dict[str, Piece], tuple[str, ...]]:
    """Replace float8 matrices by what they stand for; all other tensors stay as they are.

    Returns:
        The tensors without scales, and what was done in words.

    Raises:
        ValueError: A scale is not one positive finite number; names it.
    """
    quantised = [key for key, piece in tensors.items() if piece.dtype in FLOAT8]
    spent = {key + SCALE for key in quantised} | {key.rpartition(".")[0] + f".{INPUT_SCALE}" for key in quantised}
    result = {key: piece for key, piece in tensors.items() if key not in spent}
    for key in quantised:
        scale = tensors.get(key + SCALE)
        result[key] = _scaled(tensors[key], 1.0 if scale is None else _read_scale(key + SCALE, scale))
    scaled = sum(key + SCALE in tensors for key in quantised)
    return result, (f"{len(quantised)} float8 tensors become {RESULT}, {scaled} of them scaled",) if quantised else ()


def _read_scale(key: str, piece: Piece) -> float:
    if piece.dtype != np.float32 or piece.nbytes != 4:
        raise ValueError(f"{piece.where}: {key} is {piece.dtype} of shape {piece.shape}, expected one float32")
    scale = float(np.asarray(piece.load()).reshape(()))
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"{piece.where}: {key}={scale}: must be positive and finite")
    return scale


def _scaled(piece: Piece, scale: float) -> Piece:
    def load() -> np.ndarray:
        flat = piece.load().reshape(-1)
        result = np.empty(flat.shape, RESULT)
        for begin in range(0, flat.size, ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            result[part] = flat[part].astype(np.float32) * np.float32(scale)
        return result.reshape(piece.shape)

    return Piece(dtype=RESULT, shape=piece.shape, where=piece.where, load=load)
