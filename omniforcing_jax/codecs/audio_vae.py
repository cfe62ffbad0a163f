"""The audio VAE of LTX-2.0 at any width: log-mel rows to latents at 25 Hz and back, causal in time.

Arrays are channel-last, [B, rows, bins, channels]: rows are time steps, bins are mel bands. Latents are
[B, A, z * bins / 4] with the reference's index channel * latent bins + latent bin. A stream uses the same network; see
`carry.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import VariableDict
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import COLLECTION, is_first_call, with_past
from omniforcing_jax.codecs.conv import pixel_norm
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_PARTS, Config, require, require_counts

EPS = 1e-6
"""Epsilon of every pixel norm; the video VAE's is smaller."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioVAEConfig(Config):
    """The shape of an audio VAE.

    Attributes:
        mel_bins: Mel bands per row; halved between levels.
        audio_channels: Channels of the waveform (2: stereo).
        z_channels: Channels of a latent, per latent mel bin.
        base_channels: Width of the first level.
        multipliers: Width of each level, in units of `base_channels`. Each further level halves time and mel again.
        res_blocks: Residual blocks per encoder level; a decoder level has one more.

    Source: LTX-2, `audio_vae.model.params.ddconfig`.
    """

    mel_bins: int = 64
    audio_channels: int = 2
    z_channels: int = 8
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    res_blocks: int = 2

    def __post_init__(self):
        sizes = ("mel_bins", "audio_channels", "z_channels", "base_channels")
        require_counts(self, LARGEST_SIZE, *sizes, name="AudioVAEConfig.")
        require_counts(self, MOST_PARTS, "res_blocks", name="AudioVAEConfig.")
        fits = 1 <= len(self.multipliers) <= MOST_PARTS and all(1 <= each <= LARGEST_SIZE for each in self.multipliers)
        rule = f"must be up to {MOST_PARTS} numbers from 1 up"
        require(fits, "AudioVAEConfig.multipliers", self.multipliers, rule)
        if self.mel_bins % self.rows_per_latent:
            raise ValueError(
                f"AudioVAEConfig.mel_bins is {self.mel_bins}, expected a multiple of {self.rows_per_latent}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.base_channels * multiplier for multiplier in self.multipliers)

    @property
    def rows_per_latent(self) -> int:
        """Mel rows per latent frame, and mel bins per latent bin."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def latent_bins(self) -> int:
        """Mel bins of a latent."""
        return self.mel_bins // self.rows_per_latent

    @property
    def latent_size(self) -> int:
        """C, the channels of a latent frame."""
        return self.z_channels * self.latent_bins

    def mel_rows(self, latents: int) -> int:
        """Mel rows of `latents` latent frames: one for the first, `rows_per_latent` for each later one."""
        return self.rows_per_latent * (latents - 1) + 1


LTX2_AUDIO_VAE = AudioVAEConfig()
CHIME_AUDIO_VAE = AudioVAEConfig(z_channels=4, base_channels=16, res_blocks=1)


class Moments(NamedTuple):
    """A Gaussian over raw (not normalised) latents."""

    mean: Float[Array, "B A C"]
    logvar: Float[Array, "B A C"]


class CausalConv(nn.Module):
    """A 3x3 convolution over two past rows and the current one; mel is padded on both sides."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B rows bins _"]) -> Float[Array, "B rows bins _"]:
        """Convolve; the length stays."""
        return nn.Conv(self.features, (3, 3), padding=((0, 0), (1, 1)), name="conv")(with_past(self, x, 2))


class Downsample(nn.Module):
    """Halve time and mel; row i of the output depends on rows 2i - 2 to 2i."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B rows bins _"]) -> Float[Array, "B rows_half bins_half _"]:
        """Convolve with stride 2; n rows become (n - 1) // 2 + 1 on the first call."""
        x = with_past(self, x, 1, first_length=2)
        return nn.Conv(self.features, (3, 3), strides=(2, 2), padding=((0, 0), (0, 1)), name="conv")(x)


class Upsample(nn.Module):
    """Double time and mel by repetition, then convolve; the very first row becomes one row, later ones two."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B rows bins _"]) -> Float[Array, "B rows_double bins_double _"]:
        """Repeat, convolve, drop the first row of the first call."""
        conv = CausalConv(self.features, name="conv")
        first = is_first_call(conv)
        x = conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return x[:, 1:] if first else x


class ResBlock(nn.Module):
    """Two normalised convolutions and a shortcut, which is a 1x1 convolution where the width changes."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B rows bins _"]) -> Float[Array, "B rows bins _"]:
        """Add the convolutions' output to the shortcut."""
        h = CausalConv(self.features, name="conv1")(nn.silu(pixel_norm(x, EPS)))
        h = CausalConv(self.features, name="conv2")(nn.silu(pixel_norm(h, EPS)))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), name="shortcut")(x)
        return x + h


class AudioEncoder(nn.Module):
    """Log-mel to raw means and log-variances of latents."""

    config: AudioVAEConfig

    @nn.compact
    def __call__(self, mel: Float[Array, "B rows bins channels"]) -> Moments:
        """Encode to raw moments."""
        widths = self.config.widths
        h = CausalConv(widths[0], name="conv_in")(mel)
        for level, width in enumerate(widths):
            for i in range(self.config.res_blocks):
                h = ResBlock(width, name=f"down_{level}_block_{i}")(h)
            if level + 1 < len(widths):
                h = Downsample(width, name=f"down_{level}_downsample")(h)
        for i in (1, 2):
            h = ResBlock(widths[-1], name=f"mid_block_{i}")(h)
        h = CausalConv(2 * self.config.z_channels, name="conv_out")(nn.silu(pixel_norm(h, EPS)))
        mean, logvar = jnp.split(h, 2, axis=-1)
        return Moments(_flatten(mean), _flatten(logvar))


class AudioDecoder(nn.Module):
    """Raw latents to log-mel."""

    config: AudioVAEConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "B A C"]) -> Float[Array, "B rows bins channels"]:
        """Decode raw latents."""
        widths = self.config.widths
        h = CausalConv(widths[-1], name="conv_in")(_unflatten(latents, self.config.z_channels))
        for i in (1, 2):
            h = ResBlock(widths[-1], name=f"mid_block_{i}")(h)
        for level in reversed(range(len(widths))):
            for i in range(self.config.res_blocks + 1):
                h = ResBlock(widths[level], name=f"up_{level}_block_{i}")(h)
            if level:
                h = Upsample(widths[level], name=f"up_{level}_upsample")(h)
        return CausalConv(self.config.audio_channels, name="conv_out")(nn.silu(pixel_norm(h, EPS)))


class AudioVAE(nn.Module):
    """Encoder, decoder, and the statistics that normalise raw latents for the diffusion model.

    Variables: `params` (encoder, decoder), `stats` (mean and std of each latent channel, measured on data and not
    trained) and, in a stream, `carry`.
    """

    config: AudioVAEConfig

    def setup(self):
        """Make the parts."""
        self.encoder = AudioEncoder(self.config)
        self.decoder = AudioDecoder(self.config)
        self.mean = self.variable("stats", "mean", jnp.zeros, (self.config.latent_size,))
        self.std = self.variable("stats", "std", jnp.ones, (self.config.latent_size,))

    def __call__(self, mel: Float[Array, "B rows bins channels"]) -> Float[Array, "B rows bins channels"]:
        """Encode to the mean and decode again. `init` runs this, because it uses every parameter."""
        return self.decode(self.encode(mel))

    def moments(self, mel: Float[Array, "B rows bins channels"]) -> Moments:
        """Encode to raw mean and log-variance, for training.

        Raises:
            ValueError: Bins or channels are not the config's, or the rows are no whole number of latent frames.
        """
        config, first = self.config, not self.has_variable(COLLECTION, "encoder")
        if mel.shape[2:] != (config.mel_bins, config.audio_channels):
            expected = f"[B, rows, {config.mel_bins}, {config.audio_channels}]"
            raise ValueError(f"log-mel has shape {mel.shape}, expected {expected}")
        if (mel.shape[1] - first) % config.rows_per_latent:
            raise ValueError(
                f"log-mel has {mel.shape[1]} rows, expected {'1 + ' if first else ''}a multiple of "
                f"{config.rows_per_latent}{'' if first else ' after the first block'}"
            )
        return self.encoder(mel)

    def encode(self, mel: Float[Array, "B rows bins channels"]) -> Float[Array, "B A C"]:
        """Encode to normalised latents, the mean of the posterior."""
        return (self.moments(mel).mean - _row(self.mean.value)) / _row(self.std.value)

    def decode(self, latents: Float[Array, "B A C"]) -> Float[Array, "B rows bins channels"]:
        """Decode normalised latents; A latent frames become 4 A - 3 rows (4 A in a stream after its first block)."""
        _check_width(latents, self.config)
        return self.decoder(latents * _row(self.std.value) + _row(self.mean.value))

    def decode_raw(self, latents: Float[Array, "B A C"]) -> Float[Array, "B rows bins channels"]:
        """Decode raw latents (not normalised), for training."""
        _check_width(latents, self.config)
        return self.decoder(latents)


def decode_block(
    config: AudioVAEConfig, variables: VariableDict, latents: Float[Array, "B A C"], carry: VariableDict | None
) -> tuple[Float[Array, "B rows bins channels"], VariableDict]:
    """Decode the next latents of a stream; `carry` is None for the first block, later the last call's."""
    return _step(config, variables, latents, carry, AudioVAE.decode)


def encode_block(
    config: AudioVAEConfig,
    variables: VariableDict,
    mel: Float[Array, "B rows bins channels"],
    carry: VariableDict | None,
) -> tuple[Float[Array, "B A C"], VariableDict]:
    """Encode the next rows of a stream; `carry` is None for the first block, later the last call's."""
    return _step(config, variables, mel, carry, AudioVAE.encode)


def _step(
    config: AudioVAEConfig,
    variables: VariableDict,
    x: Array,
    carry: VariableDict | None,
    method: Callable[[AudioVAE, Array], Array],
) -> tuple[Array, VariableDict]:
    past = {} if carry is None else {COLLECTION: carry}
    y, updated = AudioVAE(config).apply({**variables, **past}, x, method=method, mutable=[COLLECTION])
    return y, updated[COLLECTION]


def _check_width(latents: Float[Array, "B A C"], config: AudioVAEConfig) -> None:
    if latents.shape[-1] != config.latent_size:
        raise ValueError(f"audio latents are {latents.shape[-1]} wide, expected {config.latent_size}")


def _flatten(z: Float[Array, "B A bins z"]) -> Float[Array, "B A z*bins"]:
    return jnp.moveaxis(z, -1, 2).reshape(*z.shape[:2], -1)


def _unflatten(latents: Float[Array, "B A C"], z_channels: int) -> Float[Array, "B A bins z"]:
    return jnp.moveaxis(latents.reshape(*latents.shape[:2], z_channels, -1), 2, -1)


def _row(x: Float[Array, " C"]) -> Float[Array, "1 1 C"]:
    return x[None, None]
