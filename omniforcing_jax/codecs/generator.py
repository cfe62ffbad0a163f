"""The generator inside every vocoder of LTX-2, at any width: log-mel rows to a waveform.

It is HiFi-GAN's cascade (2.0), or BigVGAN's with periodic activations (2.3): upsampling stages, each followed by the
mean of a few residual blocks. It looks ahead as far as back; see `GeneratorConfig.delay`.
"""

import dataclasses
import enum
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from omniforcing_jax.codecs import snake
from omniforcing_jax.codecs.snake import Snake
from omniforcing_jax.codecs.timeline import Conv, Delay, SoundPosition, UpConv
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_PARTS, Config, require, require_counts

SLOPE = 0.1
LAST_SLOPE = 0.01
END_WIDTH = 7


class Activation(enum.StrEnum):
    """Nonlinearity: a leaky ramp, or an alias-free sine."""

    LEAKY_RELU = "leaky_relu"
    SNAKE = "snake"


class Final(enum.StrEnum):
    """How the waveform is limited to [-1, 1], if at all."""

    TANH = "tanh"
    CLAMP = "clamp"
    NONE = "none"


def _require_sizes(field: str, values: tuple[Any, ...]) -> None:
    fits = len(values) <= MOST_PARTS and all(1 <= each <= LARGEST_SIZE for each in values if isinstance(each, int))
    require(fits, field, values, f"must be up to {MOST_PARTS} numbers from 1 to {LARGEST_SIZE}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Config):
    """The shape of a generator.

    Attributes:
        mel_bins: Mel bands per row.
        audio_channels: Channels of sound (2: stereo), generated together.
        channels: Widths after the first convolution and after each upsampling stage.
        rates: Upsampling factor of each stage; their product is the samples per row.
        kernels: Width of each stage's transposed convolution; kernel - rate is even.
        resblock_kernels: Widths (odd) of the residual blocks that each stage averages.
        resblock_dilations: Dilations of the layers of each of these blocks.
        activation: Nonlinearity inside.
        final: Limit of the waveform.
        final_bias: Whether the last convolution has a bias.

    Source: LTX-2, `vocoder`; there each stage has half the channels of the one before.
    """

    mel_bins: int = 64
    audio_channels: int = 2
    channels: tuple[int, ...] = (1024, 512, 256, 128, 64, 32)
    rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    kernels: tuple[int, ...] = (16, 15, 8, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    activation: Activation = Activation.LEAKY_RELU
    final: Final = Final.TANH
    final_bias: bool = True

    def __post_init__(self):
        name = type(self).__name__
        require_counts(self, LARGEST_SIZE, "mel_bins", "audio_channels", name=f"{name}.")
        for field in ("channels", "rates", "kernels", "resblock_kernels", "resblock_dilations"):
            _require_sizes(f"{name}.{field}", getattr(self, field))
        for dilations in self.resblock_dilations:
            _require_sizes(f"{name}.resblock_dilations", dilations)
        if not len(self.channels) - 1 == len(self.rates) == len(self.kernels):
            raise ValueError(
                f"{name} has {len(self.channels)} channels, {len(self.rates)} rates and {len(self.kernels)} "
                "kernels, expected one kernel per rate and one width more"
            )
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise ValueError(
                f"{name} has {len(self.resblock_kernels)} resblock_kernels but "
                f"{len(self.resblock_dilations)} resblock_dilations"
            )
        for _, rate, kernel in self.stages:
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"{name}: kernel {kernel} at rate {rate}, expected rate + an even number")
        if any(kernel % 2 == 0 for kernel in self.resblock_kernels):
            raise ValueError(f"{name}.resblock_kernels is {self.resblock_kernels}, expected odd numbers")

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """Width, upsampling factor and kernel of each stage."""
        return list(zip(self.channels[1:], self.rates, self.kernels, strict=True))

    @property
    def samples_per_row(self) -> int:
        """Samples that one mel row becomes."""
        return math.prod(self.rates)

    @property
    def delay(self) -> int:
        """Samples by which a stream's sound lags behind its rows."""
        delay = END_WIDTH // 2
        for _, rate, kernel in self.stages:
            delay = delay * rate + (kernel - rate) // 2 + self.stage_delay
        return delay + self.activation_delay + END_WIDTH // 2

    @property
    def stage_delay(self) -> int:
        """Samples, at a stage's own rate, by which its slowest residual block looks ahead."""
        return max(map(self.block_delay, self.resblock_kernels, self.resblock_dilations))

    @property
    def activation_delay(self) -> int:
        """Samples by which an activation looks ahead."""
        return snake.REACH if self.activation is Activation.SNAKE else 0

    def block_delay(self, kernel: int, dilations: tuple[int, ...]) -> int:
        """Samples by which a residual block looks ahead: half of every convolution, plus its activations."""
        return sum((kernel // 2) * (dilation + 1) + 2 * self.activation_delay for dilation in dilations)


class Activate(nn.Module):
    """The config's activation; a leaky ramp has no weights."""

    kind: Activation
    slope: float = SLOPE

    @nn.compact
    def __call__(
        self, x: Float[Array, "B samples C"], position: SoundPosition | None
    ) -> tuple[Float[Array, "B samples C"], SoundPosition | None]:
        """Apply the activation; return the result and its position."""
        if self.kind is Activation.LEAKY_RELU:
            return nn.leaky_relu(x, self.slope), position
        layer = Snake()
        nn.share_scope(self, layer)
        return layer(x, position)


class ResBlock(nn.Module):
    """Residual layers, each with a dilated and a plain convolution."""

    config: GeneratorConfig
    width: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B samples C"], position: SoundPosition | None) -> Float[Array, "B samples C"]:
        """Run the layers; in a stream the output lags `block_delay` behind the input."""
        kind = self.config.activation
        for i, dilation in enumerate(self.dilations):
            h, inner = Activate(kind, name=f"act1_{i}")(x, position)
            h, inner = Conv(x.shape[-1], self.width, dilation, name=f"conv1_{i}")(h, inner)
            h, inner = Activate(kind, name=f"act2_{i}")(h, inner)
            h, inner = Conv(x.shape[-1], self.width, name=f"conv2_{i}")(h, inner)
            x = Delay(self.config.block_delay(self.width, (dilation,)), name=f"delay_{i}")(x, position) + h
            position = inner
        return x


class Generator(nn.Module):
    """Log-mel to waveform: a whole clip or, with a `position`, the next piece of a stream."""

    config: GeneratorConfig

    @nn.compact
    def __call__(
        self, mel: Float[Array, "B rows bins channels"], position: SoundPosition | None
    ) -> tuple[Float[Array, "B samples channels"], SoundPosition | None]:
        """Generate sound; return it and its position."""
        config = self.config
        x = mel.swapaxes(2, 3).reshape(*mel.shape[:2], -1)
        x = x if position is None else position.silence_outside(x)
        x, position = Conv(config.channels[0], END_WIDTH, name="conv_in")(x, position)
        for i, (features, rate, width) in enumerate(config.stages):
            if config.activation is Activation.LEAKY_RELU:
                x = nn.leaky_relu(x, SLOPE)
            x, position = UpConv(features, width, rate, name=f"up_{i}")(x, position)
            x = self._mean_of_blocks(x, position, i)
            position = None if position is None else position.delayed(config.stage_delay)
        x, position = Activate(config.activation, LAST_SLOPE, name="act_out")(x, position)
        x, position = Conv(config.audio_channels, END_WIDTH, use_bias=config.final_bias, name="conv_out")(x, position)
        return _limit(x, config.final), position

    def _mean_of_blocks(
        self, x: Float[Array, "B samples C"], position: SoundPosition | None, stage: int
    ) -> Float[Array, "B samples C"]:
        config, outputs = self.config, []
        for j, (width, dilations) in enumerate(zip(config.resblock_kernels, config.resblock_dilations, strict=True)):
            h = ResBlock(config, width, dilations, name=f"stage_{stage}_block_{j}")(x, position)
            wait = config.stage_delay - config.block_delay(width, dilations)
            outputs.append(Delay(wait, name=f"stage_{stage}_wait_{j}")(h, position))
        return sum(outputs[1:], outputs[0]) / len(outputs)


def _limit(x: Float[Array, "B samples C"], final: Final) -> Float[Array, "B samples C"]:
    match final:
        case Final.TANH:
            return jnp.tanh(x)
        case Final.CLAMP:
            return jnp.clip(x, -1, 1)
        case Final.NONE:
            return x
