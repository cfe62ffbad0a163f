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
from ..keys import Entry, Fixed, Key, Repeated, choice
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


def _read_kinds(section: Section, key: str, default: list[str]) -> list[BlockKind]:
    names = section.take(key, list, default)
    try:
        return [RESAMPLINGS.to_native(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{section.where}.{key}={names!r}: {error}") from None


def _require_entries(section: Section, key: str, values: Sequence[Any], kinds: Sequence[Any]) -> None:
    rule = f"must have an entry for each of the {len(kinds)} resamplings"
    require(len(values) >= len(kinds), f"{section.where}.{key}", values, rule)


def _alternate(section: Section, key: str, default: list[int], resamplings: list[dict[str, Any]]) -> list[Any]:
    """Put residual stages, of so many layers each, around and between the resamplings."""
    layers = section.take_counts(key, default)
    rule = f"must have one entry more than the {len(resamplings)} resamplings"
    require(len(layers) == len(resamplings) + 1, f"{section.where}.{key}", layers, rule)
    stages = [{"kind": RES, "layers": count} for count in layers]
    return [*(block for pair in zip(stages, resamplings, strict=False) for block in pair), stages[-1]]


def _split(blocks: Sequence[VAEBlock]) -> tuple[list[int], list[VAEBlock]]:
    """Return the layers of the residual stages, and the resamplings."""
    return [block.layers for block in blocks if block.kind is RES], [block for block in blocks if block.kind is not RES]


class EncoderLists(Entry):
    """diffusers' keys of the encoder: a list for each property of its blocks, from pixels to latents."""

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the lists."""
        channels = section.take("latent_channels", int, 128)
        require(channels >= 1, f"{section.where}.latent_channels", channels, "must be at least 1")
        kinds = _read_kinds(section, "downsample_type", ["spatial", "temporal", "spatiotemporal", "spatiotemporal"])
        widths = [channels, *section.take_counts("block_out_channels", [256, 512, 1024, 2048])]
        factors = [after // before for before, after in itertools.pairwise(widths)][: len(kinds)]
        _require_entries(section, "block_out_channels", factors, kinds)
        expected = list(itertools.accumulate(factors, operator.mul, initial=channels))
        require(widths == expected, f"{section.where}.block_out_channels", widths[1:], f"must be {expected[1:]}")
        blocks = [{"kind": kind, "multiplier": n, "residual": True} for kind, n in zip(kinds, factors, strict=True)]
        native |= {"latent_channels": channels, "encoder_base_channels": channels}
        native["encoder_blocks"] = _alternate(section, "layers_per_block", [4, 6, 6, 2, 2], blocks)

    def write(self, config: VideoVAEConfig) -> dict[str, Any]:
        """Return the lists."""
        layers, blocks = _split(config.encoder_blocks)
        widths = itertools.accumulate((b.multiplier for b in blocks), operator.mul, initial=config.latent_channels)
        return {
            "latent_channels": config.latent_channels,
            "layers_per_block": layers,
            "downsample_type": [RESAMPLINGS.to_source(block.kind) for block in blocks],
            "block_out_channels": list(widths)[1:],
        }


class DecoderLists(Entry):
    """diffusers' keys of the decoder: from pixels to latents as well, but for the kinds of resamplings."""

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the lists."""
        kinds = _read_kinds(section, "upsample_type", ["spatiotemporal"] * 3)[::-1]
        factors = section.take_counts("upsample_factor", [2, 2, 2])
        residual = section.take("upsample_residual", list, [True] * 3)
        widths = section.take_counts("decoder_block_out_channels", [256, 512, 1024])
        base = widths[-1] // 8
        _require_entries(section, "upsample_factor", factors, kinds)
        _require_entries(section, "upsample_residual", residual, kinds)
        expected = _decoder_widths(8 * base, factors[: len(kinds)])
        require(widths == expected, f"{section.where}.decoder_block_out_channels", widths, f"must be {expected}")
        blocks = [  # the defaults of diffusers' class have an entry for each of three, more than some decoders need
            {"kind": kind, "multiplier": factor, "residual": flag}
            for kind, factor, flag in zip(kinds, factors, residual, strict=False)
        ]
        native["decoder_base_channels"] = base
        native["decoder_blocks"] = _alternate(section, "decoder_layers_per_block", [5, 5, 5, 5], blocks)

    def write(self, config: VideoVAEConfig) -> dict[str, Any]:
        """Return the lists."""
        layers, blocks = _split(config.decoder_blocks)
        return {
            "decoder_layers_per_block": layers,
            "upsample_type": [RESAMPLINGS.to_source(block.kind) for block in reversed(blocks)],
            "upsample_factor": [block.multiplier for block in blocks],
            "upsample_residual": [block.residual for block in blocks],
            "decoder_block_out_channels": _decoder_widths(config.decoder_width, [b.multiplier for b in blocks]),
        }


def _decoder_widths(width: int, factors: Sequence[int]) -> list[int]:
    """Return the width at the latent side of each resampling, from pixels to latents."""
    widths = itertools.accumulate(reversed(factors[1:]), operator.floordiv, initial=width)
    return list(widths)[::-1]


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
        EncoderLists(),
        DecoderLists(),
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
