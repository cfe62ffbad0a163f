"""Rotary frequencies and moved keys from the published formulas, with Python's decimals and complex numbers alone.

Source: RoPE (arXiv 2104.09864) with LTX-2's frequencies, pi/2 * theta^(j / (n - 1)), rounded to float32. Seconds are
scaled so that 0 .. 20 becomes -1 .. 1, so a key that moves t seconds turns by frequency * 2 t / 20.
"""

from decimal import Decimal, localcontext

import numpy as np

THETA, MAX_SECONDS = 10_000, 20
HALF_PI = Decimal("1.57079632679489661923132169163975144209858469968755")


def published_frequencies(axes: int, width: int) -> np.ndarray:
    """Frequencies of one axis as the float32 numbers nearest to the formula."""
    n = width // (2 * axes)
    with localcontext(prec=40):
        exact = [HALF_PI * Decimal(THETA) ** (Decimal(j) / (n - 1)) for j in range(n)]
    return np.array([np.float32(float(number)) for number in exact])


def moved_later(keys: np.ndarray, seconds: float, axes: int) -> np.ndarray:
    """Move rotated keys [..., N, H] in time; channels i and i + H/2 of a head are one complex number.

    The pairs of all heads in a row are frequency-major and axis-minor, time first; pairs without a frequency lead.
    """
    keys = np.asarray(keys, np.float64)
    heads, size = keys.shape[-2:]
    grid = published_frequencies(axes, heads * size).astype(np.float64)
    angles = np.zeros(heads * size // 2)
    angles[len(angles) - axes * len(grid) :: axes] = grid * 2 * seconds / MAX_SECONDS
    turned = (keys[..., : size // 2] + 1j * keys[..., size // 2 :]) * np.exp(1j * angles.reshape(heads, size // 2))
    return np.concatenate([turned.real, turned.imag], axis=-1)
