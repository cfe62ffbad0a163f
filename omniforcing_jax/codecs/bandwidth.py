"""Bandwidth extension (LTX-2.3): a second generator takes the first one's waveform and adds the missing band.

    waveform -> causal log-mel -> generator -> + the waveform, resampled -> limited to [-1, 1]

Source: ltx-core@1.0.0:model/audio_vae/vocoder.py, VocoderWithBWE.
"""

import dataclasses
import functools
import math
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import with_past
from omniforcing_jax.codecs.generator import Generator, GeneratorConfig
from omniforcing_jax.codecs.mel import MelConfig, filterbank
from omniforcing_jax.codecs.snake import CONSTANTS
from omniforcing_jax.codecs.timeline import Delay, SoundPosition
from omniforcing_jax.strict_json import LARGEST_SIZE, Config, require

FLOOR = 1e-5
LOBES = 6  # zero crossings of the resampling filter on each side
ROLLOFF = 0.99
REACH = math.ceil(LOBES / ROLLOFF)
"""Samples on each side, at the lower rate, that a resampled one depends on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtensionConfig(Config):
    """The shape of a bandwidth extension.

    Attributes:
        generator: The generator of the missing band.
        window: Samples per window of the log-mel, at the lower rate.
        hop: Samples from one row to the next, at the lower rate.

    Source: LTX-2.3, `vocoder.bwe`.
    """

    generator: GeneratorConfig
    window: int = 512
    hop: int = 80

    def __post_init__(self) -> None:
        """Refuse a hop that does not divide a row's samples, and a window that it does not fit."""
        samples = self.generator.samples_per_row
        rule = f"must be at least 1 and divide the {samples} samples of a row"
        require(self.hop >= 1 and samples % self.hop == 0, "ExtensionConfig.hop", self.hop, rule)
        rule = f"must be an even number from hop={self.hop} up to {LARGEST_SIZE}"
        require(
            self.hop <= self.window <= LARGEST_SIZE and self.window % 2 == 0,
            "ExtensionConfig.window",
            self.window,
            rule,
        )

    @property
    def ratio(self) -> int:
        """Output samples per input sample."""
        return self.generator.samples_per_row // self.hop

    @property
    def delay(self) -> int:
        """Samples, at the higher rate, by which the extension looks ahead."""
        return max(self.generator.delay, REACH * self.ratio)


class CausalLogMel(nn.Module):
    """Log-mel rows that depend on nothing after their own hop; the bases come from the checkpoint."""

    config: ExtensionConfig
    sample_rate: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples channels"], position: SoundPosition | None
    ) -> Float[Array, "B rows bins channels"]:
        """Compute the rows; row r depends on the `window` samples up to (r + 1) * hop."""
        config, batch, channels = self.config, x.shape[0], x.shape[2]
        waves = self.variable(CONSTANTS, "forward_basis", lambda: jnp.asarray(fourier_basis(config.window))).value
        bands = self.variable(CONSTANTS, "mel_basis", self._filterbank).value
        past = config.window - config.hop
        joined = jnp.pad(x, ((0, 0), (past, 0), (0, 0))) if position is None else with_past(self, x, past)
        mono = joined.swapaxes(1, 2).reshape(batch * channels, -1, 1)
        kernel, strides, layout = jnp.asarray(waves, x.dtype), (config.hop,), ("NWC", "WIO", "NWC")
        spectrum = jax.lax.conv_general_dilated(mono, kernel, strides, "VALID", dimension_numbers=layout)
        real, imaginary = jnp.split(spectrum, 2, axis=-1)
        power = jnp.square(real) + jnp.square(imaginary)
        silent = power == 0  # a root has no gradient there
        magnitude = jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, power)))
        mel = jnp.log(jnp.maximum(magnitude @ jnp.asarray(bands, x.dtype).T, FLOOR))
        return mel.reshape(batch, channels, -1, mel.shape[-1]).transpose(0, 2, 3, 1)

    def _filterbank(self) -> Float[Array, "bins frequencies"]:
        rate, bins = self.sample_rate, self.config.generator.mel_bins
        return jnp.asarray(
            filterbank(
                MelConfig(sample_rate=rate, n_fft=self.config.window, hop=self.config.hop, bins=bins, fmax=rate / 2)
            )
        )


@functools.cache
def fourier_basis(window: int) -> Float[np.ndarray, "window 1 parts"]:
    """Make a Hann-windowed Fourier transform as a kernel: real parts of all frequencies, then imaginary parts."""
    phases = 2 * np.pi * np.arange(window)[:, None] * np.arange(window // 2 + 1)[None] / window
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return (np.concatenate([np.cos(phases), -np.sin(phases)], axis=1) * hann[:, None]).astype(np.float32)[:, None]


@functools.cache
def resampling_taps(ratio: int) -> Float[np.ndarray, "taps ratio"]:
    """Make the Hann-windowed sinc that raises a rate, by tap (from the past on) and by phase."""
    at = (np.arange((2 * REACH + 1) * ratio) / ratio - REACH) * ROLLOFF
    window = np.cos(np.clip(at, -LOBES, LOBES) * np.pi / LOBES / 2) ** 2
    return (np.sinc(at) * window * ROLLOFF).reshape(-1, ratio)[::-1].astype(np.float32)


class Resample(nn.Module):
    """Raise the rate of a waveform, padded with its edge samples."""

    ratio: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples channels"], position: SoundPosition | None
    ) -> Float[Array, "B samples_fast channels"]:
        """Interpolate; in a stream the output lags by `REACH` samples of the lower rate."""
        if position is None:
            joined = jnp.pad(x, ((0, 0), (REACH, REACH), (0, 0)), mode="edge")
        else:
            joined = position.delayed(2 * REACH).hold_outside(with_past(self, x, 2 * REACH))
        terms = [
            joined[:, b : b + x.shape[1], None] * jnp.asarray(taps, x.dtype)[None, None, :, None]
            for b, taps in enumerate(resampling_taps(self.ratio))
        ]
        return functools.reduce(operator.add, terms).reshape(x.shape[0], -1, x.shape[2])


class Extension(nn.Module):
    """Raise a waveform's rate and generate the band that the lower rate could not hold.

    Attributes:
        config: Its shape.
        sample_rate: Samples per second of the input.
        wait: Samples by which a stream's input is delayed, so that it starts at a row's border.
    """

    config: ExtensionConfig
    sample_rate: int
    wait: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples channels"], position: SoundPosition | None
    ) -> tuple[Float[Array, "B samples_fast channels"], SoundPosition | None]:
        """Extend; return the result and its position."""
        config, rows = self.config, None
        if position is not None:
            x, position = Delay(self.wait, name="wait")(x, position), position.delayed(self.wait)
            rows = position.slower(config.hop)
        mel = CausalLogMel(config, self.sample_rate, name="mel")(x, position)
        band, _ = Generator(config.generator, name="generator")(mel, rows)
        low = Resample(config.ratio, name="resample")(x, position)
        band = Delay(config.delay - config.generator.delay, name="wait_generator")(band, position)
        low = Delay(config.delay - REACH * config.ratio, name="wait_resample")(low, position)
        y = jnp.clip(band + low, -1, 1)
        if position is None:
            return y, None
        position = position.faster(config.ratio).delayed(config.delay)
        return position.silence_outside(y), position
