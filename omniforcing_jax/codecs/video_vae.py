"""LTX-2's causal video VAE at any width: pixels <-> latents, whole clips or streams.

The architecture is data (`VideoVAEConfig`); the block lists read as in LTX-2's checkpoint
header. Whole-clip calls are methods of `VideoVAE`; the four `*_first` / `*_next` functions
are the streaming form, whose state is an explicit pytree. Losses and training are not here.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from omniforcing_jax.codecs.conv import SpatialPadding, TemporalConv, pixel_norm

Stride = tuple[int, int, int]


@dataclass(frozen=True)
class Res:
    """`layers` residual blocks at one width (`res_x`)."""

    layers: int


@dataclass(frozen=True, kw_only=True)
class Down:
    """Halve time, space or both by space-to-depth; width grows by `multiplier` (`compress_*_res`)."""

    time: bool = False
    space: bool = False
    multiplier: int = 2


@dataclass(frozen=True, kw_only=True)
class Up:
    """Double time, space or both by depth-to-space; width shrinks by `multiplier` (`compress_*`)."""

    time: bool = False
    space: bool = False
    multiplier: int = 1
    residual: bool = False


def stride(block: Down | Up) -> Stride:
    """Return the factors (time, height, width) of a resampling block."""
    space = 2 if block.space else 1
    return (2 if block.time else 1, space, space)


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """The architecture as data.

    Attributes:
        latent_channels: C of a latent.
        patch_size: pixels per side folded into channels before the first convolution.
        encoder_base_channels: width after the encoder's first convolution.
        decoder_base_channels: one eighth of the decoder's width at the latents.
        encoder_blocks: from pixels to latents.
        decoder_blocks: from pixels to latents as well, as in LTX-2's header: the decoder is
            built from the reversed list.
        causal_decoder: whether the decoder sees only the past. The released one does not.
        encoder_padding: outside of the picture in the encoder.
        decoder_padding: outside of the picture in the decoder.
    """

    latent_channels: int
    patch_size: int
    encoder_base_channels: int
    decoder_base_channels: int
    encoder_blocks: tuple[Res | Down, ...]
    decoder_blocks: tuple[Res | Up, ...]
    causal_decoder: bool
    encoder_padding: SpatialPadding = SpatialPadding.ZEROS
    decoder_padding: SpatialPadding = SpatialPadding.REFLECT

    @property
    def temporal_compression(self) -> int:
        """Pixel frames per latent frame (after the first)."""
        return math.prod(stride(block)[0] for block in self.encoder_blocks if isinstance(block, Down))

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent, per side."""
        return self.patch_size * math.prod(stride(b)[1] for b in self.encoder_blocks if isinstance(b, Down))


LTX2_VIDEO_VAE = VideoVAEConfig(
    latent_channels=128,
    patch_size=4,
    encoder_base_channels=128,
    decoder_base_channels=128,
    encoder_blocks=(
        *(Res(4), Down(space=True), Res(6), Down(time=True), Res(6)),
        *(Down(time=True, space=True), Res(2), Down(time=True, space=True), Res(2)),
    ),
    decoder_blocks=(Res(5), *(Up(time=True, space=True, multiplier=2, residual=True), Res(5)) * 3),
    causal_decoder=False,
)

CHIME_VIDEO_VAE = VideoVAEConfig(
    latent_channels=32,
    patch_size=4,
    encoder_base_channels=16,
    decoder_base_channels=8,
    encoder_blocks=(
        *(Res(1), Down(time=True), Res(1), Down(time=True, space=True), Res(1)),
        *(Down(time=True, space=True, multiplier=1), Res(1)),
    ),
    decoder_blocks=(
        *(Res(1), Up(time=True, multiplier=1, residual=True), Res(1)),
        *(Up(time=True, space=True, multiplier=2, residual=True), Res(1)),
        *(Up(time=True, space=True, multiplier=1, residual=True), Res(1)),
    ),
    causal_decoder=True,
    decoder_padding=SpatialPadding.ZEROS,
)


def fold(x: Float[Array, "B T H W C"], factors: Stride) -> Float[Array, "B t h w D"]:
    """Move the offsets (time, height, width) inside each cell to channels: `C p1 p2 p3`, C slowest."""
    (batch, frames, height, width, channels), (p1, p2, p3) = x.shape, factors
    x = x.reshape(batch, frames // p1, p1, height // p2, p2, width // p3, p3, channels)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], -1)


def unfold(x: Float[Array, "B t h w D"], factors: Stride) -> Float[Array, "B T H W C"]:
    """Invert `fold`."""
    (batch, frames, height, width, _), (p1, p2, p3) = x.shape, factors
    x = x.reshape(batch, frames, height, width, -1, p1, p2, p3)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, frames * p1, height * p2, width * p3, -1)


def patchify(pixels: Float[Array, "B T H W C"], size: int) -> Float[Array, "B T h w D"]:
    """Fold square patches into channels `C r q`: the width offset r is slower than the height offset q.

    Source: LTX-2 patchify, whose order differs from that of its space-to-depth.
    """
    turned = fold(pixels.swapaxes(2, 3), (1, size, size))
    return turned.swapaxes(2, 3)


def unpatchify(x: Float[Array, "B T h w D"], size: int) -> Float[Array, "B T H W C"]:
    """Invert `patchify`."""
    return unfold(x.swapaxes(2, 3), (1, size, size)).swapaxes(2, 3)


class ResBlock(nn.Module):
    """x + two rounds of (norm, SiLU, convolution); starts close to the identity."""

    padding: SpatialPadding
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], first: bool) -> Float[Array, "B T H W C"]:
        """Refine one chunk."""
        width = x.shape[-1]
        quiet = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        h = TemporalConv(width, self.padding, self.causal, name="conv1")(nn.silu(pixel_norm(x)), first)
        h = TemporalConv(width, self.padding, self.causal, quiet, name="conv2")(nn.silu(pixel_norm(h)), first)
        return x + h


class ResStage(nn.Module):
    """A row of residual blocks."""

    layers: int
    padding: SpatialPadding
    causal: bool = True

    def setup(self) -> None:
        self.res_blocks = [ResBlock(self.padding, self.causal) for _ in range(self.layers)]

    def __call__(self, x: Float[Array, "B T H W C"], first: bool) -> Float[Array, "B T H W C"]:
        """Refine one chunk."""
        for block in self.res_blocks:
            x = block(x, first)
        return x


class Downsample(nn.Module):
    """Space-to-depth of a convolution, plus the folded input averaged over groups of channels.

    A temporal downsampler sees the first frame of a clip twice, so that 2k + 1 frames become k + 1.

    Source: LTX-2 SpaceToDepthDownsample.
    """

    block: Down
    padding: SpatialPadding

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], first: bool) -> Float[Array, "B t h w D"]:
        """Shrink one chunk."""
        factors = stride(self.block)
        width = x.shape[-1] * self.block.multiplier
        if self.block.time and first:
            x = jnp.concatenate([x[:, :1], x], axis=1)
        skip = fold(x, factors)
        skip = skip.reshape(*skip.shape[:4], width, -1).mean(axis=-1)
        main = TemporalConv(width // math.prod(factors), self.padding, name="conv")(x, first)
        return fold(main, factors) + skip


class Upsample(nn.Module):
    """Depth-to-space of a convolution, plus (residual) the unfolded input tiled along channels.

    A temporal upsampler drops the first frame of a clip, so that k + 1 frames become 2k + 1.

    Source: LTX-2 DepthToSpaceUpsample.
    """

    block: Up
    padding: SpatialPadding
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B t h w D"], first: bool) -> Float[Array, "B T H W C"]:
        """Grow one chunk."""
        factors = stride(self.block)
        width = x.shape[-1] // self.block.multiplier
        main = TemporalConv(width * math.prod(factors), self.padding, self.causal, name="conv")(x, first)
        y = unfold(main, factors)
        if self.block.residual:
            skip = unfold(x, factors)
            y = y + jnp.concatenate([skip] * (width // skip.shape[-1]), axis=-1)
        return y[:, 1:] if self.block.time and first else y


class Encoder(nn.Module):
    """Patches to 2 x C-channel statistics; always causal.

    Source: LTX-2 VideoEncoder with `latent_log_var: uniform`.
    """

    config: VideoVAEConfig

    def setup(self) -> None:
        config, padding = self.config, self.config.encoder_padding
        self.conv_in = TemporalConv(config.encoder_base_channels, padding)
        self.down_blocks = [
            ResStage(block.layers, padding) if isinstance(block, Res) else Downsample(block, padding)
            for block in config.encoder_blocks
        ]
        self.conv_out = TemporalConv(config.latent_channels + 1, padding)

    def __call__(self, pixels: Float[Array, "B T H W 3"], first: bool) -> Float[Array, "B F h w C_plus_1"]:
        """Return the means and, as last channel, the log-variance that they share."""
        x = self.conv_in(patchify(pixels, self.config.patch_size), first)
        for block in self.down_blocks:
            x = block(x, first)
        return self.conv_out(nn.silu(pixel_norm(x)), first)


class Decoder(nn.Module):
    """Latents, not normalised, to pixels.

    Source: LTX-2 VideoDecoder without timestep conditioning or noise, as released.
    """

    config: VideoVAEConfig

    def setup(self) -> None:
        config = self.config
        rules = (config.decoder_padding, config.causal_decoder)
        self.conv_in = TemporalConv(8 * config.decoder_base_channels, *rules)
        self.up_blocks = [
            ResStage(block.layers, *rules) if isinstance(block, Res) else Upsample(block, *rules)
            for block in reversed(config.decoder_blocks)
        ]
        self.conv_out = TemporalConv(3 * config.patch_size**2, *rules)

    def __call__(self, latents: Float[Array, "B F h w C"], first: bool) -> Float[Array, "B T H W 3"]:
        """Render one chunk."""
        x = self.conv_in(latents, first)
        for block in self.up_blocks:
            x = block(x, first)
        return unpatchify(self.conv_out(nn.silu(pixel_norm(x)), first), self.config.patch_size)


class VideoVAE(nn.Module):
    """Encoder, decoder and the per-channel statistics that put latents on one scale.

    `encode` and `decode` speak normalised latents; `moments` and `render` speak the encoder's own.
    Statistics (collection `stats`) start at mean 0, std 1 and are measured after training.
    """

    config: VideoVAEConfig

    def setup(self) -> None:
        shape = (self.config.latent_channels,)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.latents_mean = self.variable("stats", "latents_mean", jnp.zeros, shape)
        self.latents_std = self.variable("stats", "latents_std", jnp.ones, shape)

    def __call__(self, pixels: Float[Array, "B T H W 3"]) -> Float[Array, "B T H W 3"]:
        """Encode and decode (also what `init` runs)."""
        return self.decode(self.encode(pixels))

    def moments(
        self, pixels: Float[Array, "B T H W 3"], first: bool = True
    ) -> tuple[Float[Array, "B F h w C"], Float[Array, "B F h w 1"]]:
        """Return mean and log-variance of the latents, not normalised, for training.

        Args:
            pixels: in [-1, 1].
            first: whether the clip begins here (False: a stream's later chunk).
        """
        check_pixels(self.config, pixels.shape, first)
        both = self.encoder(pixels, first)
        return both[..., :-1], both[..., -1:]

    def render(self, latents: Float[Array, "B F h w C"], first: bool = True) -> Float[Array, "B T H W 3"]:
        """Decode latents that are not normalised; pixels in [-1, 1], not clipped."""
        return self.decoder(latents, first)

    def encode(self, pixels: Float[Array, "B T H W 3"], first: bool = True) -> Float[Array, "B F h w C"]:
        """Return normalised means."""
        mean, _ = self.moments(pixels, first)
        return (mean - self._stat(self.latents_mean, mean)) / self._stat(self.latents_std, mean)

    def decode(self, latents: Float[Array, "B F h w C"], first: bool = True) -> Float[Array, "B T H W 3"]:
        """Decode normalised latents; pixels in [-1, 1], not clipped."""
        return self.render(
            latents * self._stat(self.latents_std, latents) + self._stat(self.latents_mean, latents), first
        )

    @staticmethod
    def _stat(stat: nn.Variable, like: Array) -> Array:
        return stat.value.astype(like.dtype)[None, None, None, None]


def check_pixels(config: VideoVAEConfig, shape: tuple[int, ...], first: bool = True) -> None:
    """Refuse a clip that the encoder cannot compress evenly.

    Raises:
        ValueError: names the offending number and the rule.
    """
    frames, height, width = shape[1:4]
    time, space = config.temporal_compression, config.spatial_compression
    if first and frames % time != 1 % time:
        raise ValueError(f"a clip needs {time}k + 1 frames, got {frames}")
    if not first and frames % time:
        raise ValueError(f"a later chunk of a clip needs a multiple of {time} frames, got {frames}")
    for name, size in (("height", height), ("width", width)):
        if size % space:
            raise ValueError(f"{name} must be a multiple of {space} pixels, got {size}")
