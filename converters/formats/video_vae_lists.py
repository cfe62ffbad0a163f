"""diffusers' config of the video VAE: a list for each property of its blocks.

Residual stages and resamplings alternate, so that the lists of stages have one entry more than those of resamplings.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import BlockKind, VAEBlock, VideoVAEConfig
from omniforcing_jax.strict_json import require

from ..config_table import ConfigTable
from ..keys import Entry, Fixed, Form, Key, Repeated, choice
from ..section import Section

RES = BlockKind.RES
RESAMPLINGS = choice({"spatial": BlockKind.SPACE, "temporal": BlockKind.TIME, "spatiotemporal": BlockKind.ALL})


def refuse_base(config: VideoVAEConfig, where: str) -> None:
    """Raise a ValueError for an encoder whose first width is not that of its latents."""
    base, rule = config.encoder_base_channels, f"{where} begins with latent_channels={config.latent_channels}"
    require(base == config.latent_channels, "encoder_base_channels", base, rule)


def require_alternation(config: VideoVAEConfig) -> None:
    """Raise a ValueError unless stages and resamplings alternate, as diffusers' class has them."""
    for name, blocks in (("encoder_blocks", config.encoder_blocks), ("decoder_blocks", config.decoder_blocks)):
        is_stage, spelled = [block.kind is RES for block in blocks], [block.kind.value for block in blocks]
        rule = "diffusers' residual stages and resamplings alternate, beginning and ending with a stage"
        require(is_stage == [i % 2 == 0 for i in range(len(blocks))] and is_stage[-1], name, spelled, rule)


def _require_counts(**lists: list[Any]) -> None:
    for name, values in lists.items():
        is_right = len(values) > 0 and all(type(value) is int and value >= 1 for value in values)
        require(is_right, name, values, "must be a list of whole numbers from 1 up")


def _join(layers: list[int], kinds: list[Any], factors: list[int], residual: list[Any]) -> tuple[dict[str, Any], ...]:
    """Make blocks of residual stages, of so many layers each, around and between resamplings."""
    count = len(kinds)
    rule = f"must have one entry more than the {count} resamplings"
    require(len(layers) == count + 1, "layers per block", layers, rule)
    for values in (factors, residual):  # the defaults of diffusers' class may be longer than needed
        require(len(values) >= count, "resamplings", values, f"must have an entry for each of {count}")
    stages = [{"kind": RES, "layers": each} for each in layers]
    resamplings = [
        {"kind": RESAMPLINGS.to_native(kind), "multiplier": factor, "residual": flag}
        for kind, factor, flag in zip(kinds, factors, residual, strict=False)
    ]
    return (*(block for pair in zip(stages, resamplings, strict=False) for block in pair), stages[-1])


def _split(blocks: Sequence[VAEBlock]) -> tuple[list[int], list[str], list[int], list[bool]]:
    """Invert `_join`."""
    resamplings = [block for block in blocks if block.kind is not RES]
    return (
        [block.layers for block in blocks if block.kind is RES],
        [RESAMPLINGS.to_source(block.kind) for block in resamplings],
        [block.multiplier for block in resamplings],
        [block.residual for block in resamplings],
    )


def _read_encoder(values: tuple[int, list[Any], list[Any], list[Any]]) -> tuple[int, int, Any]:
    channels, layers, kinds, widths = values
    _require_counts(latent_channels=[channels], layers_per_block=layers, block_out_channels=widths)
    factors = [after // before for before, after in itertools.pairwise([channels, *widths])]
    expected = _encoder_widths(channels, factors[: len(kinds)])
    require(widths == expected, "block_out_channels", widths, f"must be {expected}")
    return channels, channels, _join(layers, kinds, factors, [True] * len(kinds))


def _write_encoder(settings: tuple[int, int, tuple[VAEBlock, ...]]) -> tuple[int, list[int], list[str], list[int]]:
    channels, _, blocks = settings
    layers, kinds, factors, _ = _split(blocks)
    return channels, layers, kinds, _encoder_widths(channels, factors)


def _encoder_widths(channels: int, factors: Sequence[int]) -> list[int]:
    """Return the width after each resampling, from pixels to latents."""
    return list(itertools.accumulate(factors, operator.mul, initial=channels))[1:]


def _read_decoder(values: tuple[list[Any], ...]) -> tuple[int, Any]:
    layers, kinds, factors, residual, widths = values
    _require_counts(layers_per_block=layers, upsample_factor=factors, decoder_block_out_channels=widths)
    base = widths[-1] // 8
    expected = _decoder_widths(base, factors[: len(kinds)])
    require(widths == expected, "decoder_block_out_channels", widths, f"must be {expected}")
    return base, _join(layers, kinds[::-1], factors, residual)


def _write_decoder(settings: tuple[int, tuple[VAEBlock, ...]]) -> tuple[list[Any], ...]:
    base, blocks = settings
    layers, kinds, factors, residual = _split(blocks)
    return layers, kinds[::-1], factors, residual, _decoder_widths(base, factors)


def _decoder_widths(base: int, factors: Sequence[int]) -> list[int]:
    """Return the width at the latent side of each resampling, from pixels to latents."""
    return list(itertools.accumulate(reversed(factors[1:]), operator.floordiv, initial=8 * base))[::-1]


# From pixels to latents, but for the kinds of the decoder's resamplings.
ENCODER = Key(
    ("latent_channels", "encoder_base_channels", "encoder_blocks"),
    ("latent_channels", "layers_per_block", "downsample_type", "block_out_channels"),
    Form(kind=(int, list, list, list), to_native=_read_encoder, to_source=_write_encoder),
    (128, [4, 6, 6, 2, 2], ["spatial", "temporal", "spatiotemporal", "spatiotemporal"], [256, 512, 1024, 2048]),
)
DECODER = Key(
    ("decoder_base_channels", "decoder_blocks"),
    (
        *("decoder_layers_per_block", "upsample_type", "upsample_factor", "upsample_residual"),
        "decoder_block_out_channels",
    ),
    Form(kind=(list, list, list, list, list), to_native=_read_decoder, to_source=_write_decoder),
    ([5, 5, 5, 5], ["spatiotemporal"] * 3, [2, 2, 2], [True] * 3, [256, 512, 1024]),
)


@dataclass(frozen=True)
class AllEqual(Entry):
    """A list with one value for each block, of which only one value is supported."""

    source: str
    value: bool
    count: Callable[[VideoVAEConfig], int]

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the list and compare."""
        values = section.take(self.source, list, [])
        right = all(value is self.value for value in values)
        require(right, f"{section.where}.{self.source}", values, f"must all be {self.value}")

    def write(self, config: VideoVAEConfig) -> dict[str, Any]:
        """Repeat the value."""
        return {self.source: [self.value] * self.count(config)}


def _refuse_for_diffusers(config: VideoVAEConfig) -> None:
    refuse_base(config, "diffusers' encoder")
    require_alternation(config)


def _downs(config: VideoVAEConfig) -> int:
    return len(_split(config.encoder_blocks)[1])


def _ups(config: VideoVAEConfig) -> int:
    return len(_split(config.decoder_blocks)[1])


MODEL_CONFIG = ConfigTable(
    config=VideoVAEConfig,
    where="vae/config.json",
    entries=(
        Repeated("_class_name", lambda config: "AutoencoderKLLTX2Video", checked=False),
        Fixed({"in_channels": 3, "out_channels": 3, "patch_size_t": 1, "scaling_factor": 1.0}),
        Fixed({"timestep_conditioning": False, "encoder_causal": True}),
        ENCODER,
        DECODER,
        AllEqual("spatio_temporal_scaling", True, _downs),
        AllEqual("decoder_spatio_temporal_scaling", True, _ups),
        AllEqual("decoder_inject_noise", False, lambda config: _ups(config) + 1),
        Key("patch_size", "patch_size", int, 4),
        Key("causal_decoder", "decoder_causal", bool, True),
        Key("encoder_padding", "encoder_spatial_padding_mode", SpatialPadding, "zeros"),
        Key("decoder_padding", "decoder_spatial_padding_mode", SpatialPadding, "reflect"),
        Repeated("down_block_types", lambda config: ["LTX2VideoDownBlock3D"] * _downs(config), checked=False),
        Repeated("spatial_compression_ratio", "spatial_compression", checked=False),
        Repeated("temporal_compression_ratio", "temporal_compression", checked=False),
    ),
    unread=("resnet_norm_eps", "_.*"),
    refuse=_refuse_for_diffusers,
)
