"""Waveform to log-mel, the audio VAE's input: STFT, Slaney filterbank, natural logarithm.

Pure float32 functions, defined at 16 kHz. Sound at another rate is resampled on the host first (`resample`).
The filterbank is built once per config.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omniforcing_jax.codecs.mel_filters import mel_filters
from omniforcing_jax.strict_json import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig(Config):
    """The parameters of a log-mel.

    Attributes:
        sample_rate: Samples per second of the waveform.
        n_fft: Samples per window; the window is a periodic Hann of the same length.
        hop: Samples from one row to the next.
        bins: Mel bands.
        fmin: Lowest frequency of the bands, in Hz.
        fmax: Highest frequency of the bands, in Hz.
        floor: Smaller magnitudes are raised to this before the logarithm.

    Source: LTX-2, `audio_vae.preprocessing`.
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 160
    bins: int = 64
    fmin: float = 0.0
    fmax: float = 8000.0
    floor: float = 1e-5

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "hop", "bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"MelConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.n_fft % 2:
            raise ValueError(f"MelConfig.n_fft is {self.n_fft}, expected an even number")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(f"MelConfig: 0 <= fmin ({self.fmin}) < fmax ({self.fmax}) <= {self.sample_rate / 2} fails")


LTX2_MEL = MelConfig()


def log_mel(
    waveform: Float[Array, "B samples channels"], config: MelConfig = LTX2_MEL
) -> Float[Array, "B rows bins channels"]:
    """Compute the log-mel of a waveform at `config.sample_rate`.

    Row r is centred on sample r * hop, so there are samples // hop + 1 rows.

    Source: LTX-2, `AudioProcessor.waveform_to_mel`.
    """
    magnitude = stft_magnitude(waveform, n_fft=config.n_fft, hop=config.hop)
    mel = jnp.einsum("brfc,mf->brmc", magnitude, jnp.asarray(filterbank(config)))
    return jnp.log(jnp.maximum(mel, config.floor))


def stft_magnitude(
    waveform: Float[Array, "B samples channels"], *, n_fft: int, hop: int
) -> Float[Array, "B rows frequencies channels"]:
    """Take the magnitudes of a centred STFT (periodic Hann window, reflected borders).

    Where a magnitude is exactly zero its gradient is zero, not NaN, so networks can train on digital silence.

    Raises:
        ValueError: The waveform is too short to reflect.
    """
    samples = waveform.shape[1]
    if samples <= n_fft // 2:
        raise ValueError(f"waveform has {samples} samples, expected more than half a window ({n_fft // 2})")
    padded = jnp.pad(waveform, ((0, 0), (n_fft // 2, n_fft // 2), (0, 0)), mode="reflect")
    frames = _frames(padded, n_fft, hop, samples // hop + 1)
    window = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft), waveform.dtype)
    spectrum = jnp.fft.rfft(frames * window[None, None, :, None], axis=2)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    silent = power == 0
    return jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, power)))


def _frames(
    padded: Float[Array, "B samples channels"], size: int, hop: int, rows: int
) -> Float[Array, "B rows size channels"]:
    """Cut overlapping frames by joining neighbouring hops: slices, several times faster than a gather on CPU."""
    batch, samples, channels = padded.shape
    per_frame = -(-size // hop)
    needed = (rows + per_frame - 1) * hop
    hops = jnp.pad(padded, ((0, 0), (0, max(0, needed - samples)), (0, 0)))[:, :needed]
    hops = hops.reshape(batch, -1, hop, channels)
    return jnp.concatenate([hops[:, i : i + rows] for i in range(per_frame)], axis=2)[:, :, :size]


@functools.lru_cache(maxsize=8)
def filterbank(config: MelConfig) -> Float[np.ndarray, "bins frequencies"]:
    """Build the Slaney-scaled, area-normalised mel filterbank."""
    return mel_filters(
        sample_rate=config.sample_rate,
        n_fft=config.n_fft,
        bins=config.bins,
        fmin=config.fmin,
        fmax=config.fmax,
        equal_area=True,
    )


def fit_rows(
    mel: Float[Array, "B rows bins channels"], rows: int, config: MelConfig = LTX2_MEL
) -> Float[Array, "B fitted bins channels"]:
    """Crop a log-mel to `rows` rows, or extend it with silence.

    A clip of 1 + 24 s frames (s seconds) has 100 s + 5 rows, of which 100 s + 1 are encoded.
    """
    missing = max(0, rows - mel.shape[1])
    padded = jnp.pad(mel, ((0, 0), (0, missing), (0, 0), (0, 0)), constant_values=float(np.log(config.floor)))
    return padded[:, :rows]


def resample(
    waveform: Float[np.ndarray, "*batch samples channels"], source_rate: int, target_rate: int
) -> Float[np.ndarray, "*batch resampled channels"]:
    """Resample a waveform on the host: polyphase, windowed sinc, without delay.

    Raises:
        ValueError: A rate is not positive.
    """
    from scipy.signal import resample_poly

    if source_rate < 1 or target_rate < 1:
        raise ValueError(f"sample rates are {source_rate} and {target_rate}, expected positive numbers")
    if source_rate == target_rate:
        return waveform
    common = int(np.gcd(source_rate, target_rate))
    return resample_poly(waveform, target_rate // common, source_rate // common, axis=-2).astype(waveform.dtype)
