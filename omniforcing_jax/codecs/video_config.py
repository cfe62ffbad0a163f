"""The video VAE's architecture as data: block lists as in LTX-2's checkpoint header, and presets."""

import dataclasses
import enum
import math

from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_PARTS, Config, require, require_counts

Stride = tuple[int, int, int]


class BlockKind(enum.StrEnum):
    """The part that an entry of a block list builds; the decoder expands what the encoder compresses.

    The header's encoder entries end in `_res`, because each has a residual path around it.
    """

    RES = "res_x"
    SPACE = "compress_space"
    TIME = "compress_time"
    ALL = "compress_all"


STRIDES: dict[BlockKind, Stride] = {
    BlockKind.RES: (1, 1, 1),
    BlockKind.SPACE: (1, 2, 2),
    BlockKind.TIME: (2, 1, 1),
    BlockKind.ALL: (2, 2, 2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEBlock(Config):
    """One entry of a block list.

    Attributes:
        kind: Residual blocks, or the axes that are resampled.
        layers: Residual blocks in a `res_x`; 0 in other kinds.
        multiplier: Width at the latent side of a resampling, over the width at its pixel side.
        residual: Whether the resampled input is added to the resampled convolution.
    """

    kind: BlockKind
    layers: int = 0
    multiplier: int = 1
    residual: bool = False

    def __post_init__(self) -> None:
        """Refuse entries that cannot be built."""
        is_res = self.kind is BlockKind.RES
        rule = f"a res_x has from 1 to {MOST_PARTS} layers, other kinds have none"
        fits = 1 <= self.layers <= MOST_PARTS if is_res else self.layers == 0
        require(fits, f"{self.kind}.layers", self.layers, rule)
        cells = math.prod(self.stride)
        rule = f"must divide the {cells} cells that are folded into one"
        require(self.multiplier >= 1 and cells % self.multiplier == 0, f"{self.kind}.multiplier", self.multiplier, rule)

    @property
    def stride(self) -> Stride:
        """Factors in time, height and width."""
        return STRIDES[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAEConfig(Config):
    """The shape of a video VAE.

    Attributes:
        latent_channels: C, the channels of a latent.
        patch_size: Pixels per side that are folded into channels before the first convolution.
        encoder_base_channels: Width after the encoder's first convolution.
        decoder_base_channels: One eighth of the decoder's width at the latents.
        encoder_blocks: The encoder's parts, from pixels to latents.
        decoder_blocks: The decoder's parts, in the header's order: also from pixels to latents, so they are built in
            reverse.
        causal_decoder: Whether the decoder sees only the past. The released one sees both sides.
        encoder_padding: Padding around the picture in the encoder.
        decoder_padding: Padding around the picture in the decoder.

    Source: LTX-2, header section `vae`.
    """

    latent_channels: int
    patch_size: int
    encoder_base_channels: int
    decoder_base_channels: int
    encoder_blocks: tuple[VAEBlock, ...]
    decoder_blocks: tuple[VAEBlock, ...]
    causal_decoder: bool
    encoder_padding: SpatialPadding = SpatialPadding.ZEROS
    decoder_padding: SpatialPadding = SpatialPadding.REFLECT

    def __post_init__(self) -> None:
        """Refuse widths that do not divide, and an encoder and a decoder that do not fit together."""
        sizes = ("latent_channels", "encoder_base_channels", "decoder_base_channels")
        require_counts(self, LARGEST_SIZE, *sizes, name="VideoVAEConfig.")
        require_counts(self, MOST_PARTS, "patch_size", name="VideoVAEConfig.")
        for name, blocks in zip(("encoder_blocks", "decoder_blocks"), self._halves, strict=True):
            rule = f"must be at most {MOST_PARTS}"
            require(len(blocks) <= MOST_PARTS, f"VideoVAEConfig.{name}", f"{len(blocks)} blocks", rule)
        strides = [tuple(math.prod(b.stride[axis] for b in blocks) for axis in range(3)) for blocks in self._halves]
        rule = f"must expand as much as the encoder compresses, {strides[0]}"
        require(strides[0] == strides[1], "VideoVAEConfig.decoder_blocks", strides[1], rule)
        width = self.encoder_base_channels
        for block in self.encoder_blocks:
            if block.kind is not BlockKind.RES:
                require(block.residual, f"encoder {block.kind}.residual", False, "must be true")
                width *= block.multiplier
                _require_cells(block, width, "encoder", "output")
        width = self.decoder_width
        for block in reversed(self.decoder_blocks):
            if block.residual:
                _require_cells(block, width, "decoder", "input")
            rule = f"must divide the width there, {width}"
            require(width % block.multiplier == 0, f"decoder {block.kind}.multiplier", block.multiplier, rule)
            width //= block.multiplier

    @property
    def decoder_width(self) -> int:
        """Width of the decoder at the latents."""
        return 8 * self.decoder_base_channels

    @property
    def decoder_reach(self) -> int:
        """Latent frames after its own that a frame depends on; 0 for a causal decoder."""
        if self.causal_decoder:
            return 0
        frames = 1  # the last convolution's; the loop goes from there to the latents
        for block in self.decoder_blocks:
            frames = -(-frames // block.stride[0]) + (2 * block.layers or 1)
        return frames + 1

    @property
    def temporal_compression(self) -> int:
        """Pixel frames per latent frame, after the first of a clip."""
        return math.prod(block.stride[0] for block in self.encoder_blocks)

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent, per side."""
        return self.patch_size * math.prod(block.stride[1] for block in self.encoder_blocks)

    @property
    def _halves(self) -> tuple[tuple[VAEBlock, ...], tuple[VAEBlock, ...]]:
        return self.encoder_blocks, self.decoder_blocks


def _require_cells(block: VAEBlock, width: int, half: str, side: str) -> None:
    cells = math.prod(block.stride)
    require(width % cells == 0, f"{half} {block.kind} {side} width", width, f"must be a multiple of {cells}")


def res(layers: int) -> VAEBlock:
    """Build the entry of `layers` residual blocks."""
    return VAEBlock(kind=BlockKind.RES, layers=layers)


def compress(kind: BlockKind, multiplier: int = 2) -> VAEBlock:
    """Build the entry of a residual resampling, in the encoder or in the decoder."""
    return VAEBlock(kind=kind, multiplier=multiplier, residual=True)


def expand(kind: BlockKind, multiplier: int = 2) -> VAEBlock:
    """Build the entry of a plain resampling, as in LTX-2.3's decoder."""
    return VAEBlock(kind=kind, multiplier=multiplier)


SPACE, TIME, ALL = BlockKind.SPACE, BlockKind.TIME, BlockKind.ALL

LTX2_VIDEO_VAE = VideoVAEConfig(
    latent_channels=128,
    patch_size=4,
    encoder_base_channels=128,
    decoder_base_channels=128,
    encoder_blocks=(
        *(res(4), compress(SPACE), res(6), compress(TIME), res(6)),
        *(compress(ALL), res(2), compress(ALL), res(2)),
    ),
    decoder_blocks=(res(5), compress(ALL), res(5), compress(ALL), res(5), compress(ALL), res(5)),
    causal_decoder=False,
)

LTX23_VIDEO_VAE = VideoVAEConfig(
    latent_channels=128,
    patch_size=4,
    encoder_base_channels=128,
    decoder_base_channels=128,
    encoder_blocks=(
        *(res(4), compress(SPACE), res(6), compress(TIME), res(4)),
        *(compress(ALL), res(2), compress(ALL, 1), res(2)),
    ),
    decoder_blocks=(
        *(res(4), expand(SPACE), res(6), expand(TIME), res(4)),
        *(expand(ALL, 1), res(2), expand(ALL), res(2)),
    ),
    causal_decoder=False,
    decoder_padding=SpatialPadding.ZEROS,
)

CHIME_VIDEO_VAE = VideoVAEConfig(
    latent_channels=32,
    patch_size=4,
    encoder_base_channels=16,
    decoder_base_channels=8,
    encoder_blocks=(res(1), compress(TIME), res(1), compress(ALL), res(1), compress(ALL, 1), res(1)),
    decoder_blocks=(res(1), compress(TIME, 1), res(1), compress(ALL), res(1), compress(ALL, 1), res(1)),
    causal_decoder=True,
    decoder_padding=SpatialPadding.ZEROS,
)
