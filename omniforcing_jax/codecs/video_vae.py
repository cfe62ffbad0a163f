"""LTX-2's video VAE at any width: pixels [B, frames, height, width, 3] to latents [B, F, h, w, C] and back.

`VideoVAE` has methods for whole clips. A stream uses the same network (see `carry.py`), through pure functions of an
explicit pytree: `encode_first`, `encode_next`, `decode_first` and `decode_next`. The architecture is data, in
`video_config.py`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import VariableDict
from jaxtyping import Array, Float

from omniforcing_jax.codecs.carry import COLLECTION, is_first_call
from omniforcing_jax.codecs.conv import SpatialPadding, TemporalConv, pixel_norm_before_border
from omniforcing_jax.codecs.folding import fold, patchify, unfold, unpatchify
from omniforcing_jax.codecs.video_config import (
    CHIME_VIDEO_VAE,
    LTX2_VIDEO_VAE,
    LTX23_VIDEO_VAE,
    BlockKind,
    Stride,
    VAEBlock,
    VideoVAEConfig,
)

__all__ = [
    "CHIME_VIDEO_VAE",
    "LTX2_VIDEO_VAE",
    "LTX23_VIDEO_VAE",
    "Moments",
    "VideoVAE",
    "VideoVAEConfig",
    "decode_first",
    "decode_next",
    "encode_first",
    "encode_next",
]

QUIET = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
"""Initialiser of the last convolution of a residual block, so that the block starts close to the identity."""


class ResBlock(nn.Module):
    """x plus two rounds of norm, SiLU, convolution."""

    padding: SpatialPadding
    causal: bool
    ahead: int

    def setup(self) -> None:
        """Make the parts; their width is the input's."""
        self.conv1 = TemporalConv(None, self.padding, self.causal, ahead=self.ahead)
        self.conv2 = TemporalConv(None, self.padding, self.causal, QUIET, self.ahead)

    def __call__(self, x: Float[Array, "B frames h w C"]) -> Float[Array, "B frames h w C"]:
        """Add the refinement to the input."""
        h = self.conv1(nn.silu(pixel_norm_before_border(x)))
        return x + self.conv2(nn.silu(pixel_norm_before_border(h)))


class ResStage(nn.Module):
    """A sequence of residual blocks (`res_x`)."""

    layers: int
    padding: SpatialPadding
    causal: bool = True
    ahead: int = 0

    def setup(self) -> None:
        """Make the blocks."""
        self.res_blocks = [ResBlock(self.padding, self.causal, self.ahead) for _ in range(self.layers)]

    def __call__(self, x: Float[Array, "B frames h w C"]) -> Float[Array, "B frames h w C"]:
        """Run the blocks."""
        for block in self.res_blocks:
            x = block(x)
        return x


class Downsample(nn.Module):
    """Space-to-depth of a convolution, plus the folded input averaged over groups of channels.

    Where it halves time, it repeats the first frame of a clip: 2k + 1 frames become k + 1.

    Source: LTX-2 SpaceToDepthDownsample.
    """

    stride: Stride
    multiplier: int
    padding: SpatialPadding

    @nn.compact
    def __call__(self, x: Float[Array, "B frames h w C"]) -> Float[Array, "B frames_out h_out w_out D"]:
        """Downsample."""
        width = x.shape[-1] * self.multiplier
        conv = TemporalConv(width // math.prod(self.stride), self.padding, name="conv")
        if self.stride[0] == 2 and is_first_call(conv):
            x = jnp.concatenate([x[:, :1], x], axis=1)
        skip = fold(x, self.stride)
        skip = skip.reshape(*skip.shape[:4], width, -1).mean(axis=-1)
        return fold(conv(x), self.stride) + skip


class Upsample(nn.Module):
    """Depth-to-space of a convolution, plus (residual) the unfolded input tiled along channels.

    Where it doubles time, it drops the first frame of a clip: k + 1 frames become 2k + 1.

    Source: LTX-2 DepthToSpaceUpsample.
    """

    stride: Stride
    multiplier: int
    residual: bool
    padding: SpatialPadding
    causal: bool
    ahead: int

    @nn.compact
    def __call__(self, x: Float[Array, "B frames_out h_out w_out D"]) -> Float[Array, "B frames h w C"]:
        """Upsample."""
        width = x.shape[-1] // self.multiplier
        conv = TemporalConv(width * math.prod(self.stride), self.padding, self.causal, ahead=self.ahead, name="conv")
        dropped = 1 if self.stride[0] == 2 and is_first_call(conv) else 0
        y = unfold(conv(x), self.stride)
        if self.residual:
            skip = unfold(x, self.stride)
            y = y + jnp.tile(skip, width // skip.shape[-1])
        return y[:, dropped:]


class VideoEncoder(nn.Module):
    """Pixels to raw moments, always causal.

    Source: LTX-2 VideoEncoder with `latent_log_var: uniform`.
    """

    config: VideoVAEConfig

    def setup(self) -> None:
        """Make the parts."""
        padding = self.config.encoder_padding
        self.conv_in = TemporalConv(self.config.encoder_base_channels, padding)
        self.down_blocks = [self._part(block) for block in self.config.encoder_blocks]
        self.conv_out = TemporalConv(self.config.latent_channels + 1, padding)

    def _part(self, block: VAEBlock) -> nn.Module:
        if block.kind is BlockKind.RES:
            return ResStage(block.layers, self.config.encoder_padding)
        return Downsample(block.stride, block.multiplier, self.config.encoder_padding)

    def __call__(self, pixels: Float[Array, "B frames height width 3"]) -> Float[Array, "B F h w C_plus_1"]:
        """Return the means and, as the last channel, their common log-variance."""
        x = self.conv_in(patchify(pixels, self.config.patch_size))
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nn.silu(pixel_norm_before_border(x)))


class VideoDecoder(nn.Module):
    """Raw latents to pixels, without timestep conditioning or noise, as released.

    Attributes:
        config: Its shape.
        ahead: Look-ahead latent frames at the end of a call (see `TemporalConv`), whose frames are not returned.

    Source: LTX-2 VideoDecoder.
    """

    config: VideoVAEConfig
    ahead: int = 0

    def setup(self) -> None:
        """Make the parts."""
        rules, ahead, parts = (self.config.decoder_padding, self.config.causal_decoder), self.ahead, []
        self.conv_in = TemporalConv(self.config.decoder_width, *rules, ahead=ahead)
        for block in reversed(self.config.decoder_blocks):
            if block.kind is BlockKind.RES:
                parts.append(ResStage(block.layers, *rules, ahead))
            else:
                parts.append(Upsample(block.stride, block.multiplier, block.residual, *rules, ahead))
            ahead *= block.stride[0]
        self.up_blocks = parts
        self.conv_out = TemporalConv(3 * self.config.patch_size**2, *rules, ahead=ahead)

    def __call__(self, latents: Float[Array, "B F h w C"]) -> Float[Array, "B frames height width 3"]:
        """Decode."""
        x = self.conv_in(latents)
        for block in self.up_blocks:
            x = block(x)
        y = self.conv_out(nn.silu(pixel_norm_before_border(x)))
        return unpatchify(y[:, : y.shape[1] - self.conv_out.ahead], self.config.patch_size)


class Moments(NamedTuple):
    """A Gaussian over raw (not normalised) latents, with one log-variance per position."""

    mean: Float[Array, "B F h w C"]
    logvar: Float[Array, "B F h w 1"]


class VideoVAE(nn.Module):
    """Encoder, decoder, and the statistics that normalise raw latents for the diffusion model.

    Variables: `params` (encoder, decoder), `stats` (latents_mean and latents_std of each channel, measured on data and
    not trained) and, in a stream, `carry`. `ahead` is the decoder's.
    """

    config: VideoVAEConfig
    ahead: int = 0

    def setup(self) -> None:
        """Make the parts."""
        self.encoder = VideoEncoder(self.config)
        self.decoder = VideoDecoder(self.config, self.ahead)
        self.latents_mean = self.variable("stats", "latents_mean", jnp.zeros, (self.config.latent_channels,))
        self.latents_std = self.variable("stats", "latents_std", jnp.ones, (self.config.latent_channels,))

    def __call__(self, pixels: Float[Array, "B frames height width 3"]) -> Float[Array, "B frames height width 3"]:
        """Encode to the mean and decode again. `init` runs this, because it uses every parameter."""
        return self.decode(self.encode(pixels))

    def moments(self, pixels: Float[Array, "B frames height width 3"]) -> Moments:
        """Encode pixels in [-1, 1] to raw moments, for training.

        Raises:
            ValueError: Frames, height or width do not divide; names the number and the rule.
        """
        frames, height, width = pixels.shape[1:4]
        time, space = self.config.temporal_compression, self.config.spatial_compression
        first = not self.has_variable(COLLECTION, "encoder")
        if (frames - first) % time:
            rule = f"{time}k + 1 in a clip" if first else f"a multiple of {time} after the first block"
            raise ValueError(f"pixels have {frames} frames, expected {rule}")
        for side, size in (("height", height), ("width", width)):
            if size % space:
                raise ValueError(f"pixels have {side} {size}, expected a multiple of {space}")
        both = self.encoder(pixels)
        return Moments(both[..., :-1], both[..., -1:])

    def render(self, latents: Float[Array, "B F h w C"]) -> Float[Array, "B frames height width 3"]:
        """Decode raw latents, for training; pixels are not clipped.

        Raises:
            ValueError: The latents' channels are not the config's, or the picture is too small to reflect.
        """
        _check_latents(self.config, latents.shape)
        return self.decoder(latents)

    def encode(self, pixels: Float[Array, "B frames height width 3"]) -> Float[Array, "B F h w C"]:
        """Encode to normalised latents, the mean of the posterior."""
        mean = self.moments(pixels).mean
        return (mean - _per_channel(self.latents_mean, mean)) / _per_channel(self.latents_std, mean)

    def decode(self, latents: Float[Array, "B F h w C"]) -> Float[Array, "B frames height width 3"]:
        """Decode normalised latents; F frames become 8F - 7 (8F in a stream after its first block).

        Raises:
            ValueError: As in `render`.
        """
        _check_latents(self.config, latents.shape)
        return self.decoder(
            latents * _per_channel(self.latents_std, latents) + _per_channel(self.latents_mean, latents)
        )


def _check_latents(config: VideoVAEConfig, shape: tuple[int, ...]) -> None:
    height, width, channels = shape[2:]
    if channels != config.latent_channels:
        raise ValueError(f"video latents have {channels} channels, expected {config.latent_channels}")
    if config.decoder_padding is SpatialPadding.REFLECT and min(height, width) < 2:
        raise ValueError(f"video latents are {height} x {width}, expected at least 2 x 2 to reflect at the border")


def encode_first(
    config: VideoVAEConfig, variables: VariableDict, pixels: Float[Array, "B frames height width 3"]
) -> tuple[Float[Array, "B F h w C"], VariableDict]:
    """Encode the first 8k + 1 frames of a stream; return the latents and the encoder's state."""
    return _step(config, variables, pixels, {}, VideoVAE.encode)


def encode_next(
    config: VideoVAEConfig,
    variables: VariableDict,
    pixels: Float[Array, "B frames height width 3"],
    carry: VariableDict,
) -> tuple[Float[Array, "B F h w C"], VariableDict]:
    """Encode the next 8k frames of a stream; the state keeps its shapes, so it can be donated."""
    return _step(config, variables, pixels, {COLLECTION: carry}, VideoVAE.encode)


def decode_first(
    config: VideoVAEConfig, variables: VariableDict, latents: Float[Array, "B F h w C"], ahead: int = 0
) -> tuple[Float[Array, "B frames height width 3"], VariableDict]:
    """Decode the first latent frames of a stream; return frames and the decoder's state.

    Args:
        config: The VAE's config.
        variables: Its variables.
        latents: F latent frames. The last `ahead` of them are look-ahead: pass them again in the next call. The others
            become 8 (F - ahead) - 7 frames.
        ahead: Look-ahead of a decoder that is not causal. The frames are close to the whole clip's with a few latents,
            and equal with the whole receptive field (22 latents in 2.0, 14 in 2.3).

    Raises:
        ValueError: There is only look-ahead, or a causal decoder has some.
    """
    _check_ahead(config, latents.shape[1], ahead)
    return _step(config, variables, latents, {}, VideoVAE.decode, ahead)


def decode_next(
    config: VideoVAEConfig,
    variables: VariableDict,
    latents: Float[Array, "B F h w C"],
    carry: VariableDict,
    ahead: int = 0,
) -> tuple[Float[Array, "B frames height width 3"], VariableDict]:
    """Decode the next latent frames of a stream into 8 (F - ahead) frames; the state keeps its shapes.

    Arguments as `decode_first`; `latents` begin with the look-ahead of the last call.

    Raises:
        ValueError: As in `decode_first`.
    """
    _check_ahead(config, latents.shape[1], ahead)
    return _step(config, variables, latents, {COLLECTION: carry}, VideoVAE.decode, ahead)


def _step(
    config: VideoVAEConfig,
    variables: VariableDict,
    x: Array,
    past: VariableDict,
    method: Callable[[VideoVAE, Array], Array],
    ahead: int = 0,
) -> tuple[Array, VariableDict]:
    y, updated = VideoVAE(config, ahead).apply({**variables, **past}, x, method=method, mutable=[COLLECTION])
    return y, updated[COLLECTION]


def _check_ahead(config: VideoVAEConfig, frames: int, ahead: int) -> None:
    if ahead and config.causal_decoder:
        raise ValueError(f"ahead={ahead}: must be 0, a causal decoder has no look-ahead")
    if not 0 <= ahead < frames:
        raise ValueError(f"ahead={ahead}: must be from 0 to {frames - 1}, fewer than the {frames} latent frames given")


def _per_channel(stat: nn.Variable, like: Array) -> Float[Array, "1 1 1 1 C"]:
    return jnp.asarray(stat.value, like.dtype)[None, None, None, None]
