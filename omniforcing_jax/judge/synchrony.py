"""Whether one hears what happens when one sees it: the lag of the sound behind the picture.

The onset strength of the sound is correlated with the events of the motion: reversals, starts and stops. Motion energy
itself was tried first. Its correlation is blurred, because fast motion lasts a while.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omniforcing_jax.judge.faults import find_motion
from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.sound import MOMENT, Sound

LONGEST = 0.5  # seconds; the largest lag that is found, to either side
RIVALS = 1.0  # seconds; lags up to this are searched for a rival of the highest peak
BREADTH = 0.1  # seconds around the peak that belong to it
SMOOTH = 0.02  # seconds; about half a frame
SLOW = 1.0  # seconds; slower changes of either strength are removed
SHORTEST = 2.0  # seconds that picture and sound must share
QUIET = 1e-8  # power per band: -80 dB, below which nothing is heard
LOOK_BACK = 2  # moments; the onset strength is a rise over this time


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How well onset strength and motion events agree, by the lag of the sound.

    Attributes:
        times: Seconds, in the file's clock, 10 ms apart.
        heard: Onset strength at these times, with mean 0 over every second and standard deviation 1.
        seen: Motion events at these times, scaled in the same way.
        steps: Assumed delay of the sound in moments of 10 ms.
        values: Correlation of the two at each lag, in about [-1, 1].
    """

    times: Float[np.ndarray, " n"]
    heard: Float[np.ndarray, " n"]
    seen: Float[np.ndarray, " n"]
    steps: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]

    @property
    def lags(self) -> Float[np.ndarray, " k"]:
        """Assumed delay of the sound in seconds."""
        return self.steps * MOMENT


def onset_strength(sound: Sound) -> Float[np.ndarray, " M"]:
    """Return the mean rise of the mel bands in dB, moment by moment; falls count as zero.

    Two shifts cancel to a few milliseconds. A rise out of silence shows as soon as an onset enters the spectrum's
    window, which is early; and a rise over the last 20 ms belongs to the moment 10 ms ago, which is late.
    """
    level = 10 * np.log10(np.maximum(sound.mel, np.float32(QUIET)))
    rise = np.maximum(0, level[LOOK_BACK:] - level[:-LOOK_BACK]).mean(1)
    return np.concatenate([np.zeros(min(LOOK_BACK, len(level)), rise.dtype), rise])


def correlate(picture: Picture, sound: Sound) -> Correlation | None:
    """Correlate sound and picture; None if they share too little time, or one of them holds no event."""
    from scipy.ndimage import gaussian_filter1d, uniform_filter1d
    from scipy.signal import correlate as convolve

    start, stop = max(picture.times[0], sound.times[0]), min(picture.times[-1], sound.times[-1])
    if stop - start < SHORTEST:
        return None
    times = np.arange(start, stop, MOMENT)
    curves = []
    for at, strength in ((sound.times, onset_strength(sound)), (picture.times, find_motion(picture))):
        curve = gaussian_filter1d(np.interp(times, at, strength), SMOOTH / MOMENT)
        curve = curve - uniform_filter1d(curve, round(SLOW / MOMENT))
        if not curve.std():
            return None
        curves.append(curve / curve.std())
    heard, seen = curves
    reach = round(RIVALS / MOMENT)
    steps = np.arange(-reach, reach + 1)
    values = convolve(heard, seen, method="fft")[len(times) - 1 + steps] / (len(times) - np.abs(steps))
    return Correlation(times=times, heard=heard, seen=seen, steps=steps, values=values)


class Peaks(NamedTuple):
    """The highest peak of each of n curves over lags, at most 500 ms from no lag."""

    at: Int[np.ndarray, " n"]  # index of the lag
    lag_s: Float[np.ndarray, " n"]  # to a fraction of a moment
    height: Float[np.ndarray, " n"]


def find_peaks(values: Float[np.ndarray, "n k"]) -> Peaks:
    """Find the peaks of curves whose middle is no lag."""
    middle, reach = values.shape[1] // 2, round(LONGEST / MOMENT)
    peaks = middle - reach + np.argmax(values[:, middle - reach : middle + reach + 1], axis=1)
    left, height, right = (values[np.arange(len(values)), peaks + side] for side in (-1, 0, 1))
    bend = left - 2 * height + right
    beside = np.clip(0.5 * (left - right) / np.where(bend < 0, bend, -np.inf), -0.5, 0.5)
    return Peaks(at=peaks, lag_s=(peaks - middle + beside) * MOMENT, height=height)


def measure_synchrony(correlation: Correlation | None) -> dict[str, float] | None:
    """Return lag and confidence; None without a correlation.

    Returns:
        `lag_ms`: lag at the peak of the correlation, at most 500 ms; positive if the sound is late. `correlation`:
        height of the peak. `confidence`: how far the peak exceeds its highest rival, as a share of its height in
        [0, 1]; near 0 another lag is as likely. A rival is at least 100 ms away, at a lag of at most one second.
    """
    if correlation is None:
        return None
    lags, values = correlation.lags, correlation.values
    (peak,), (lag_s,), (height,) = find_peaks(values[None])
    rival = float(values[np.abs(lags - lags[peak]) > BREADTH].max())
    return {
        "lag_ms": 1e3 * float(lag_s),
        "correlation": float(height),
        "confidence": float(np.clip(1 - rival / height, 0, 1)) if height > 0 else 0.0,
    }
