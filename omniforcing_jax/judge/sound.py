"""A sound as a few numbers and a mel row per moment of 10 ms; the samples themselves are not kept.

All sound is measured at 16 kHz, so that files of any rate are compared over the same frequencies. The powers of the
channels are averaged, not their samples, so that opposite phases do not cancel.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex64, Float, Float32

from omniforcing_jax.codecs.mel_filters import mel_edges, mel_filters

RATE = 16_000
HOP = 160  # samples of a moment
MOMENT = HOP / RATE  # seconds
WINDOW = 512  # samples of a spectrum, centred on its moment
MARGIN = (WINDOW - HOP) // 2
BANDS, LOWEST, HIGHEST = 48, 60.0, 7600.0  # mel bands and their range in Hz
PIECE = 8 * RATE  # samples that are worked on at once
HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """Measurements of a sound, one entry per moment of 10 ms; an incomplete last moment is left out.

    Attributes:
        sample_rate: Samples per second of the file.
        channels: Channels of the file.
        start_s: Time of the first sample, in the file's clock.
        power: Mean square of all channels; 1 is full scale.
        mel: Power per mel band, averaged over the channels. The bands sum to about the power from 60 to 7,600 Hz.
        edge: Largest |third difference| of neighbouring samples at 16 kHz in any channel.
        sides: Mean square of the left and of the right channel; None unless the file has two channels.
    """

    sample_rate: int
    channels: int
    start_s: float
    power: Float[np.ndarray, " M"]
    mel: Float32[np.ndarray, "M bands"]
    edge: Float[np.ndarray, " M"]
    sides: Float[np.ndarray, "M 2"] | None = None

    @property
    def times(self) -> Float[np.ndarray, " M"]:
        """Middle of each moment in seconds, in the file's clock."""
        return self.start_s + (np.arange(len(self.power)) + 0.5) * MOMENT

    @property
    def stop_s(self) -> float:
        """Time at which the last moment ends."""
        return self.start_s + len(self.power) * MOMENT


@functools.cache
def filters() -> Float32[np.ndarray, "bands frequencies"]:
    """Return triangles that add up to one between the first and the last centre."""
    return mel_filters(sample_rate=RATE, n_fft=WINDOW, bins=BANDS, fmin=LOWEST, fmax=HIGHEST, equal_area=False)


def centres() -> Float[np.ndarray, " bands"]:
    """Return the centre of each band in Hz."""
    return mel_edges(BANDS, LOWEST, HIGHEST)[1:-1]


def spectra(samples: Float32[np.ndarray, "channels n"]) -> Complex64[np.ndarray, "channels moments frequencies"]:
    """Return the spectrum of every window of samples (periodic Hann), a hop apart."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW, axis=1)[:, ::HOP]
    return np.fft.rfft(windows * HANN, axis=2).astype(np.complex64)


class Listener:
    """Measures samples at 16 kHz, piece after piece.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        # `MARGIN` samples before the next moment, then all samples that are not measured yet.
        self._waiting = np.zeros((channels, MARGIN), np.float32)
        self._rows: list[tuple[np.ndarray, ...]] = []

    def hear(self, samples: Float32[np.ndarray, "channels n"]) -> None:
        """Take the next samples, full scale at 1."""
        self._waiting = np.concatenate([self._waiting, samples], axis=1)
        while self._waiting.shape[1] >= PIECE + 2 * MARGIN:
            self._work(PIECE // HOP)

    def sound(self, *, sample_rate: int, start_s: float) -> Sound | None:
        """Return the measurements; None for less than one moment.

        Args:
            sample_rate: Samples per second of the file.
            start_s: Time of the first sample, in the file's clock.
        """
        self._waiting = np.pad(self._waiting, ((0, 0), (0, MARGIN)))
        if left := (self._waiting.shape[1] - 2 * MARGIN) // HOP:
            self._work(left)
        if not self._rows:
            return None
        powers, mel, edge = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
        return Sound(
            sample_rate=sample_rate,
            channels=self._channels,
            start_s=start_s,
            power=powers.mean(1),
            mel=mel,
            edge=edge,
            sides=powers if self._channels == 2 else None,
        )

    def _work(self, moments: int) -> None:
        """Measure the next moments, all of whose surroundings have been heard."""
        samples = self._waiting[:, : moments * HOP + 2 * MARGIN]
        inner = samples[:, MARGIN : MARGIN + moments * HOP].reshape(self._channels, moments, HOP)
        # A Hann window of n samples holds 3n/8 of a signal's energy; one-sided spectra hold half of it.
        density = (np.square(np.abs(spectra(samples))) * np.float32(2 / (0.375 * WINDOW**2))).mean(0)
        steps = np.abs(np.diff(samples[:, MARGIN - 3 : MARGIN + moments * HOP], n=3, axis=1))
        self._rows.append(
            (
                np.square(inner, dtype=np.float64).mean(2).T,
                density @ filters().T,
                steps.reshape(self._channels, moments, HOP).max((0, 2)).astype(np.float64),
            )
        )
        self._waiting = self._waiting[:, moments * HOP :]
