"""Bandwidth extension (LTX-2.3): a second generator hears the first one's waveform and adds what it cannot hold.

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
from omniforcing_jax.codecs.timeline import Delay, Span
from omniforcing_jax.strict_json import Config, require

FLOOR = 1e-5
LOBES = 6  # zero crossings of the resampling filter on each side
ROLLOFF = 0.99
REACH = math.ceil(LOBES / ROLLOFF)
"""Samples, at the lower rate, that a resampled one depends on, on each side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtensionConfig(Config):
    """The shape of a bandwidth extension.

    Attributes:
        generator: What makes the missing band.
        window: Samples per window of the log-mel, at the lower rate.
        hop: Samples from one row to the next, at the lower rate.

    Source: LTX-2.3, `vocoder.bwe`.
    """

    generator: GeneratorConfig
    window: int = 512
    hop: int = 80

    def __post_init__(self) -> None:
        """Refuse rows that do not become whole samples."""
        samples = self.generator.samples_per_row
        rule = f"must be at least 1 and divide the {samples} samples of a row"
        require(self.hop >= 1 and samples % self.hop == 0, "ExtensionConfig.hop", self.hop, rule)
        rule = f"must be an even number from hop={self.hop} up"
        require(self.window >= self.hop and self.window % 2 == 0, "ExtensionConfig.window", self.window, rule)

    @property
    def ratio(self) -> int:
        """Samples that one sample becomes."""
        return self.generator.samples_per_row // self.hop

    @property
    def delay(self) -> int:
        """Samples, at the higher rate, that the extension looks ahead."""
        return max(self.generator.delay, REACH * self.ratio)


class CausalLogMel(nn.Module):
    """Log-mel rows that see nothing after their own hop, through bases that lie in the checkpoint."""

    config: ExtensionConfig
    sample_rate: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples channels"], span: Span | None
    ) -> Float[Array, "B rows bins channels"]:
        """Analyse; row r sees the `window` samples up to (r + 1) * hop."""
        config, batch, channels = self.config, x.shape[0], x.shape[2]
        waves = self.variable(CONSTANTS, "forward_basis", lambda: jnp.asarray(fourier_basis(config.window))).value
        bands = self.variable(CONSTANTS, "mel_basis", self._filterbank).value
        past = config.window - config.hop
        joined = jnp.pad(x, ((0, 0), (past, 0), (0, 0))) if span is None else with_past(self, x, past)
        spectrum = jax.lax.conv_general_dilated(
            *(joined.swapaxes(1, 2).reshape(batch * channels, -1, 1), jnp.asarray(waves, x.dtype)),
            *((config.hop,), "VALID"),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        real, imaginary = jnp.split(spectrum, 2, axis=-1)
        power = jnp.square(real) + jnp.square(imaginary)
        silent = power == 0  # where a root has no gradient
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
    """Make a Hann-windowed Fourier transform as a kernel: real parts of all frequencies, then imaginary ones."""
    phases = 2 * np.pi * np.arange(window)[:, None] * np.arange(window // 2 + 1)[None] / window
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return (np.concatenate([np.cos(phases), -np.sin(phases)], axis=1) * hann[:, None]).astype(np.float32)[:, None]


@functools.cache
def resampling_taps(ratio: int) -> Float[np.ndarray, "places ratio"]:
    """Make the Hann-windowed sinc that raises a rate, by place (from the past on) and by phase."""
    at = (np.arange((2 * REACH + 1) * ratio) / ratio - REACH) * ROLLOFF
    window = np.cos(np.clip(at, -LOBES, LOBES) * np.pi / LOBES / 2) ** 2
    return (np.sinc(at) * window * ROLLOFF).reshape(-1, ratio)[::-1].astype(np.float32)


class Resample(nn.Module):
    """Raise the rate of a waveform; its edge samples are repeated outside."""

    ratio: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], span: Span | None) -> Float[Array, "B T_fast C"]:
        """Interpolate; in a stream the result is `REACH` samples of the lower rate behind."""
        if span is None:
            joined = jnp.pad(x, ((0, 0), (REACH, REACH), (0, 0)), mode="edge")
        else:
            joined = span.delayed(2 * REACH).hold_outside(with_past(self, x, 2 * REACH))
        terms = [
            joined[:, b : b + x.shape[1], None] * jnp.asarray(taps, x.dtype)[None, None, :, None]
            for b, taps in enumerate(resampling_taps(self.ratio))
        ]
        return functools.reduce(operator.add, terms).reshape(x.shape[0], -1, x.shape[2])


class Extension(nn.Module):
    """A waveform at a higher rate, with a band that the lower rate could not hold.

    Attributes:
        config: Its shape.
        sample_rate: Of the waveform that comes in.
        wait: Samples that a stream's waveform is held back, so that it stands at a row's border.
    """

    config: ExtensionConfig
    sample_rate: int
    wait: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples channels"], span: Span | None
    ) -> tuple[Float[Array, "B more channels"], Span | None]:
        """Extend, and say where the result stands."""
        config, rows = self.config, None
        if span is not None:
            x, span = Delay(self.wait, name="wait")(x, span), span.delayed(self.wait)
            rows = span.slower(config.hop)
        mel = CausalLogMel(config, self.sample_rate, name="mel")(x, span)
        band, _ = Generator(config.generator, name="generator")(mel, rows)
        low = Resample(config.ratio, name="resample")(x, span)
        band = Delay(config.delay - config.generator.delay, name="wait_generator")(band, span)
        low = Delay(config.delay - REACH * config.ratio, name="wait_resample")(low, span)
        y = jnp.clip(band + low, -1, 1)
        if span is None:
            return y, None
        span = span.faster(config.ratio).delayed(config.delay)
        return span.silence_outside(y), span
