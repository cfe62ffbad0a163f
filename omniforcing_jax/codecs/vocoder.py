"""The vocoder of LTX-2.0 (HiFi-GAN) at any width: log-mel rows to a waveform.

It looks into the future as well as into the past, so a stream's sound lags behind its rows by `VocoderConfig.delay`
samples. In a stream every layer is a fixed delay line: as many samples leave as enter, shifted, and those that stand
before the start (or after the end) of the sound are held at the zeros that a whole clip is padded with.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import COLLECTION, with_past
from omniforcing_jax.config import Config

SLOPE = 0.1
LAST_SLOPE = 0.01
END_WIDTH = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderConfig(Config):
    """The shape of a vocoder.

    Attributes:
        mel_bins: Mel bands per row.
        audio_channels: Channels of sound (2: stereo); all are vocoded together.
        row_rate: Mel rows per second.
        channels: Widths: after the first convolution, then after each upsampling stage.
        rates: Upsampling factor of each stage; their product is the samples per row.
        kernels: Width of each stage's transposed convolution; kernel - rate is even.
        resblock_kernels: Widths (odd) of the residual blocks that each stage averages.
        resblock_dilations: Dilations of each of these blocks' layers.

    Source: LTX-2, `vocoder`; there each stage has half the channels of the one before.
    """

    mel_bins: int = 64
    audio_channels: int = 2
    row_rate: int = 100
    channels: tuple[int, ...] = (1024, 512, 256, 128, 64, 32)
    rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    kernels: tuple[int, ...] = (16, 15, 8, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    def __post_init__(self):
        if not len(self.channels) - 1 == len(self.rates) == len(self.kernels):
            raise ValueError(
                f"VocoderConfig has {len(self.channels)} channels, {len(self.rates)} rates and {len(self.kernels)} "
                "kernels, expected one kernel per rate and one width more"
            )
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise ValueError(
                f"VocoderConfig has {len(self.resblock_kernels)} resblock_kernels but "
                f"{len(self.resblock_dilations)} resblock_dilations"
            )
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"VocoderConfig: kernel {kernel} at rate {rate}, expected rate + an even number")
        if any(kernel % 2 == 0 for kernel in self.resblock_kernels):
            raise ValueError(f"VocoderConfig.resblock_kernels is {self.resblock_kernels}, expected odd numbers")

    @property
    def samples_per_row(self) -> int:
        """Samples that one mel row becomes."""
        return math.prod(self.rates)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveform."""
        return self.row_rate * self.samples_per_row

    @property
    def delay(self) -> int:
        """Samples by which a stream's sound lags behind the rows pushed so far."""
        delay = END_WIDTH // 2
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            delay = delay * rate + (kernel - rate) // 2 + self.stage_delay
        return delay + END_WIDTH // 2

    @property
    def stage_delay(self) -> int:
        """Samples, at a stage's own rate, that its slowest residual block looks ahead."""
        blocks = zip(self.resblock_kernels, self.resblock_dilations, strict=True)
        return max(block_delay(kernel, dilations) for kernel, dilations in blocks)

    @property
    def lookahead_rows(self) -> int:
        """Mel rows after its own on which a row's sound may depend."""
        return -(-self.delay // self.samples_per_row)


LTX2_VOCODER = VocoderConfig()
# Chime's tones repeat with every row: one stage that writes whole rows learns in minutes what a cascade did not.
CHIME_VOCODER = VocoderConfig(
    channels=(160, 6), rates=(240,), kernels=(480,), resblock_kernels=(3,), resblock_dilations=((1,),)
)


def block_delay(kernel: int, dilations: tuple[int, ...]) -> int:
    """Count the samples that a residual block looks ahead: half of every convolution, dilated and plain."""
    return (kernel // 2) * sum(dilation + 1 for dilation in dilations)


@flax.struct.dataclass
class Span:
    """Where the samples at hand stand, at their own rate: the first one at `start`, the sound's end at `end`."""

    start: Any  # int32 []
    end: Any  # int32 [], or None while it is not known

    def delayed(self, samples: int) -> "Span":
        """Step back, as a layer that looks ahead does."""
        return dataclasses.replace(self, start=self.start - samples)

    def faster(self, rate: int) -> "Span":
        """Count in samples of a higher rate."""
        return dataclasses.replace(self, start=self.start * rate, end=None if self.end is None else self.end * rate)

    def silence_outside(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Set what lies before the start or after the end of the sound to zero, as whole clips are padded."""
        at = self.start + jnp.arange(x.shape[1])
        inside = at >= 0 if self.end is None else (at >= 0) & (at < self.end)
        return jnp.where(inside[None, :, None], x, jnp.zeros((), x.dtype))


class Conv(nn.Module):
    """An odd-width convolution that keeps the length."""

    features: int
    width: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B T _"], span: Span | None) -> tuple[Float[Array, "B T _"], Span | None]:
        """Convolve, and say where the results stand."""
        reach = self.width // 2 * self.dilation
        border = reach if span is None else 0
        conv = nn.Conv(self.features, self.width, kernel_dilation=self.dilation, padding=border, name="conv")
        if span is None:
            return conv(x), None
        span = span.delayed(reach)
        return span.silence_outside(conv(with_past(self, x, 2 * reach))), span


class Delay(nn.Module):
    """Hold a shortcut back until the layers beside it have seen as far ahead as they need."""

    samples: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], span: Span | None) -> Float[Array, "B T C"]:
        """Return what entered `samples` ago."""
        if span is None or self.samples == 0:
            return x
        return with_past(self, x, self.samples)[:, : x.shape[1]]


class UpConv(nn.Module):
    """A transposed convolution, computed as a plain one with `rate` results per place (no zeros are multiplied).

    Result q takes input q // rate - t through tap q % rate + t * rate, for t from 0 to the kernel's end.
    The kernel is [width, in, out] in the reference's tap order, not flipped.
    """

    features: int
    width: int
    rate: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T _"], span: Span | None) -> tuple[Float[Array, "B T_fast _"], Span | None]:
        """Upsample, and say where the results stand."""
        channels, past, cut = x.shape[-1], (self.width - 1) // self.rate, (self.width - self.rate) // 2
        init = nn.initializers.variance_scaling(self.rate, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (self.width, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        taps = jnp.pad(kernel, ((0, (past + 1) * self.rate - self.width), (0, 0), (0, 0)))
        taps = taps.reshape(past + 1, self.rate, channels, self.features)[::-1].swapaxes(1, 2)
        joined = jnp.pad(x, ((0, 0), (past, past), (0, 0))) if span is None else with_past(self, x, past)
        y = jax.lax.conv_general_dilated(
            joined, taps.reshape(past + 1, channels, -1), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        y = y.reshape(x.shape[0], -1, self.features) + bias[None, None]
        if span is None:
            return y[:, cut : cut + x.shape[1] * self.rate], None
        span = span.faster(self.rate).delayed(cut)
        return span.silence_outside(y), span


class ResBlock(nn.Module):
    """Residual layers of a dilated and a plain convolution each."""

    width: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], span: Span | None) -> Float[Array, "B T C"]:
        """Run the layers; in a stream the result is `block_delay` behind its input."""
        for i, dilation in enumerate(self.dilations):
            h, inner = Conv(x.shape[-1], self.width, dilation, name=f"conv1_{i}")(nn.leaky_relu(x, SLOPE), span)
            h, inner = Conv(x.shape[-1], self.width, name=f"conv2_{i}")(nn.leaky_relu(h, SLOPE), inner)
            x = Delay(block_delay(self.width, (dilation,)), name=f"delay_{i}")(x, span) + h
            span = inner
        return x


class Vocoder(nn.Module):
    """Log-mel to waveform; with a `span`, the next piece of a stream."""

    config: VocoderConfig

    @nn.compact
    def __call__(
        self, mel: Float[Array, "B rows bins channels"], span: Span | None = None
    ) -> Float[Array, "B samples channels"]:
        """Vocode a whole clip, or continue a stream.

        Raises:
            ValueError: If bins or channels are not the config's.
        """
        config = self.config
        if mel.shape[2:] != (config.mel_bins, config.audio_channels):
            expected = f"[B, rows, {config.mel_bins}, {config.audio_channels}]"
            raise ValueError(f"log-mel has shape {mel.shape}, expected {expected}")
        x = mel.swapaxes(2, 3).reshape(*mel.shape[:2], -1)
        x, span = Conv(config.channels[0], END_WIDTH, name="conv_in")(x, span)
        for i, (features, rate, width) in enumerate(
            zip(config.channels[1:], config.rates, config.kernels, strict=True)
        ):
            x, span = UpConv(features, width, rate, name=f"up_{i}")(nn.leaky_relu(x, SLOPE), span)
            x = self._mean_of_blocks(x, span, i)
            span = None if span is None else span.delayed(config.stage_delay)
        x, _ = Conv(config.audio_channels, END_WIDTH, name="conv_out")(nn.leaky_relu(x, LAST_SLOPE), span)
        return jnp.tanh(x)

    def _mean_of_blocks(self, x: Float[Array, "B T C"], span: Span | None, stage: int) -> Float[Array, "B T C"]:
        config, outputs = self.config, []
        for j, (width, dilations) in enumerate(zip(config.resblock_kernels, config.resblock_dilations, strict=True)):
            h = ResBlock(width, dilations, name=f"stage_{stage}_block_{j}")(x, span)
            wait = config.stage_delay - block_delay(width, dilations)
            outputs.append(Delay(wait, name=f"stage_{stage}_wait_{j}")(h, span))
        return sum(outputs[1:], outputs[0]) / len(outputs)


@flax.struct.dataclass
class VocoderCarry:
    """What a stream of sound keeps between pieces: every layer's past, and how many rows went in.

    The count stops at the look-ahead, after which nothing depends on it: it cannot overflow.
    """

    past: Any  # the collection `carry`
    rows: Any  # int32 []


def push(
    config: VocoderConfig,
    variables: VariableDict,
    mel: Float[Array, "B rows bins channels"],
    carry: VocoderCarry | None,
) -> tuple[Float[Array, "B samples channels"], VocoderCarry]:
    """Vocode the next rows of a stream; `carry` is None for the first piece, and what came back afterwards.

    As many samples come out as rows went in, `config.delay` samples late: the first `config.delay` samples of a
    stream are silence that stands before its start and is dropped, and `flush` has the last ones.
    """
    rows = jnp.zeros((), jnp.int32) if carry is None else carry.rows
    samples, past = _advance(config, variables, mel, carry, Span(start=rows, end=None))
    return samples, VocoderCarry(past=past, rows=jnp.minimum(rows + mel.shape[1], config.lookahead_rows))


def flush(config: VocoderConfig, variables: VariableDict, carry: VocoderCarry) -> Float[Array, "B delay channels"]:
    """End a stream: return the `config.delay` samples that waited for rows that will not come."""
    past = jax.tree.leaves(carry.past)[0]
    nothing = jnp.zeros((past.shape[0], config.lookahead_rows, config.mel_bins, config.audio_channels), past.dtype)
    samples, _ = _advance(config, variables, nothing, carry, Span(start=carry.rows, end=carry.rows))
    return samples[:, : config.delay]


def _advance(config, variables, mel, carry, span):
    past = {} if carry is None else {COLLECTION: carry.past}
    samples, updated = Vocoder(config).apply({**variables, **past}, mel, span, mutable=[COLLECTION])
    return samples, updated[COLLECTION]
