"""Mel filters after Slaney's Auditory Toolbox, in NumPy: linear in Hz below 1 kHz, logarithmic above.

Audio VAE, vocoder training and the judge use them. They are librosa's (`htk=False`), which a test compares with.
"""

import numpy as np
from jaxtyping import Float

HZ_PER_MEL = 200 / 3  # below the break
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27  # above the break, 27 mels are a factor of 6.4


def hz_to_mel(hz: float) -> float:
    """Return the mel value of a frequency in Hz."""
    return hz / HZ_PER_MEL if hz < BREAK_HZ else BREAK_MEL + float(np.log(hz / BREAK_HZ) / LOG_STEP)


def mel_to_hz(mels: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the frequencies in Hz of mel values."""
    above = BREAK_HZ * np.exp(LOG_STEP * (mels - BREAK_MEL))
    return np.where(mels < BREAK_MEL, HZ_PER_MEL * mels, above)


def mel_edges(bins: int, fmin: float, fmax: float) -> Float[np.ndarray, " edges"]:
    """Return the `bins` + 2 frequencies in Hz between which the filters lie, evenly spaced in mels.

    Filter i rises from edge i to its centre, edge i + 1, and falls to edge i + 2.
    """
    return mel_to_hz(np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), bins + 2))


def mel_filters(
    *, sample_rate: int, n_fft: int, bins: int, fmin: float, fmax: float, equal_area: bool
) -> Float[np.ndarray, "bins frequencies"]:
    """Build triangular filters over the frequencies of a spectrum, float32.

    Args:
        sample_rate: Samples per second.
        n_fft: Samples per spectrum, which has n_fft / 2 + 1 frequencies.
        bins: Number of filters.
        fmin: Lower edge of the first filter in Hz.
        fmax: Upper edge of the last filter in Hz.
        equal_area: Whether each filter is scaled to the same area in Hz (Slaney's normalisation); else its peak is 1.
    """
    edges = mel_edges(bins, fmin, fmax)
    away = edges[:, None] - np.fft.rfftfreq(n_fft, 1 / sample_rate)
    widths = np.diff(edges)[:, None]
    filters = np.maximum(0, np.minimum(-away[:-2] / widths[:-1], away[2:] / widths[1:])).astype(np.float32)
    return (filters * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32) if equal_area else filters
