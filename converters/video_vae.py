"""The video VAE as a component: names and configs of LTX-2's single file and of diffusers, 2.0 and 2.3.

Both halves are rows of blocks; LTX-2 numbers them through, diffusers groups residual blocks with the resampling beside
them. Source: specs/ltx2.md 6, 9.1, 9.2, A.2; what a config leaves out means what the format's own class supposes.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from converters.component import DIFFUSERS, LTX2, Component, Header, Naming, Section
from converters.rules import Axes, Rule
from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import BlockKind, VAEBlock, VideoVAEConfig
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.strict_json import require

PREFIX = "vae."
STATISTICS = "per_channel_statistics."
UNUSED = tuple(STATISTICS + name for name in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means"))
KERNEL: Axes = (2, 3, 4, 1, 0)
RES = BlockKind.RES

Spell = Callable[[str, int, int], str]
"""Spells where a block lies: its half, its place in the order of computation, and the number of resamplings there."""


def make_rules(config: VideoVAEConfig, spell: Spell, layers: str, mean: str, std: str) -> Iterator[Rule]:
    """Pair our names with another format's.

    Args:
        config: The network.
        spell: Where the format keeps a block.
        layers: What it calls the rows of a residual stage.
        mean: What it calls the latents' mean.
        std: What it calls their standard deviation.
    """
    halves = (("encoder", "down_blocks", config.encoder_blocks), ("decoder", "up_blocks", config.decoder_blocks[::-1]))
    for half, ours, blocks in halves:
        resamplings = sum(block.kind is not RES for block in blocks)
        for end in ("conv_in", "conv_out"):
            yield from _conv(f"{half}/{end}", f"{half}.{end}")
        for i, block in enumerate(blocks):
            place = f"{half}.{spell(half, i, resamplings)}"
            if block.kind is not RES:
                yield from _conv(f"{half}/{ours}_{i}/conv", f"{place}.conv")
            for j in range(block.layers):
                for conv in ("conv1", "conv2"):
                    yield from _conv(f"{half}/{ours}_{i}/res_blocks_{j}/{conv}", f"{place}.{layers}.{j}.{conv}")
    yield Rule("stats/latents_mean", mean)
    yield Rule("stats/latents_std", std)


def _conv(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"params/{ours}/kernel", f"{theirs}.conv.weight", KERNEL)
    yield Rule(f"params/{ours}/bias", f"{theirs}.conv.bias")


def _original_place(half: str, i: int, resamplings: int) -> str:
    return f"{'down' if half == 'encoder' else 'up'}_blocks.{i}"


def _diffusers_place(half: str, i: int, resamplings: int) -> str:
    """Spell a block's place; residual stages and resamplings alternate, and the one at the latents is the middle."""
    way, is_decoder = ("down", False) if half == "encoder" else ("up", True)
    stage, is_resampling = divmod(i, 2)
    if is_resampling:
        return f"{way}_blocks.{stage}.{way}samplers.0"
    if i == (0 if is_decoder else 2 * resamplings):
        return "mid_block"
    return f"{way}_blocks.{stage - is_decoder}"


def original_rules(config: VideoVAEConfig) -> tuple[Rule, ...]:
    """List the names of LTX-2's single file."""
    mean, std = f"{STATISTICS}mean-of-means", f"{STATISTICS}std-of-means"
    rules = make_rules(config, _original_place, "res_blocks", mean, std)
    return tuple(Rule(rule.ours, PREFIX + rule.theirs, rule.axes) for rule in rules)


def diffusers_rules(config: VideoVAEConfig) -> tuple[Rule, ...]:
    """List diffusers' names.

    Raises:
        ValueError: Residual stages and resamplings do not alternate.
    """
    _require_alternation(config)
    return tuple(make_rules(config, _diffusers_place, "resnets", "latents_mean", "latents_std"))


def _require_alternation(config: VideoVAEConfig) -> None:
    for name, blocks in (("encoder_blocks", config.encoder_blocks), ("decoder_blocks", config.decoder_blocks)):
        kinds = [block.kind is RES for block in blocks]
        rule = "diffusers' residual stages and resamplings alternate, beginning and ending with a stage"
        require(kinds == [i % 2 == 0 for i in range(len(kinds))] and kinds[-1], name, _spell(blocks), rule)


def _spell(blocks: tuple[VAEBlock, ...]) -> list[str]:
    return [block.kind.value for block in blocks]


FIXED = {
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "scaling_factor": 1.0,
}


def read_header(header: Header) -> VideoVAEConfig:
    """Read the `vae` section of an LTX-2 header.

    Raises:
        ValueError: A value is missing, of the wrong kind, or not what this network is built for; names it.
    """
    if not isinstance(header.get("vae"), Mapping):
        raise ValueError(f"header config={sorted(header)}: must have a vae section")
    section = Section(header["vae"], "header config, vae")
    section.expect(FIXED)
    section.ignore("_class_name")
    timed = section.take("timestep_conditioning", bool, True)
    require(not timed, f"{section.where}.timestep_conditioning", timed, "must be there and false")
    channels = section.take("latent_channels", int, 128)
    base = section.take("encoder_base_channels", int, channels)
    require(base == channels, f"{section.where}.encoder_base_channels", base, f"must be latent_channels={channels}")
    padding = section.take("spatial_padding_mode", SpatialPadding, None)
    encoder, decoder = (
        tuple(_read_block(entry, half, f"{section.where}.{half}") for entry in section.take(f"{half}_blocks", list))
        for half in ("encoder", "decoder")
    )
    config = VideoVAEConfig(
        latent_channels=channels,
        patch_size=section.take("patch_size", int, 4),
        encoder_base_channels=base,
        decoder_base_channels=section.take("decoder_base_channels", int, 128),
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        causal_decoder=section.take("causal_decoder", bool, False),
        encoder_padding=padding or SpatialPadding.ZEROS,
        decoder_padding=padding or SpatialPadding.REFLECT,
    )
    section.close()
    return config


def _read_block(entry: Any, half: str, where: str) -> VAEBlock:
    """Read `[name, {...}]` or `[name, layers]`."""
    is_pair = isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)
    require(is_pair, where, entry, "must be lists of [name, values]")
    name, values = entry
    values = Section({"num_layers": values} if type(values) is int else values, f"{where}, {name}")
    suffix = "_res" if half == "encoder" else ""
    kinds = {kind.value + suffix * (kind is not RES): kind for kind in BlockKind}
    require(name in kinds, where, name, f"must be one of {', '.join(kinds)}")
    kind = kinds[name]
    if kind is RES:
        values.expect({"inject_noise": False})
        block = VAEBlock(kind=kind, layers=values.take("num_layers", int))
    elif half == "encoder":
        block = VAEBlock(kind=kind, multiplier=values.take("multiplier", int, 2), residual=True)
    else:
        residual = values.take("residual", bool, False) and kind is BlockKind.ALL  # others do not listen to it
        block = VAEBlock(kind=kind, multiplier=values.take("multiplier", int, 1), residual=residual)
    values.close()
    return block


def write_header(config: VideoVAEConfig) -> dict[str, Any]:
    """Write the `vae` section of an LTX-2 header.

    Raises:
        ValueError: LTX-2's format cannot express the network; names what.
    """
    _require_base(config, "LTX-2")
    for block in config.decoder_blocks:
        is_known = not block.residual or block.kind is BlockKind.ALL
        require(is_known, f"decoder {block.kind}.residual", True, "LTX-2 has it in compress_all only")
    paddings = (config.encoder_padding, config.decoder_padding)
    is_known = paddings[0] is paddings[1] or paddings == (SpatialPadding.ZEROS, SpatialPadding.REFLECT)
    require(is_known, "decoder_padding", config.decoder_padding.value, "LTX-2's header has one padding for both halves")
    section = {
        "_class_name": "CausalVideoAutoencoder",
        **FIXED,
        "latent_channels": config.latent_channels,
        "patch_size": config.patch_size,
        "encoder_base_channels": config.encoder_base_channels,
        "decoder_base_channels": config.decoder_base_channels,
        "causal_decoder": config.causal_decoder,
        "timestep_conditioning": False,
        "encoder_blocks": [_write_block(block, "_res") for block in config.encoder_blocks],
        "decoder_blocks": [_write_block(block, "") for block in config.decoder_blocks],
    }
    if paddings[0] is paddings[1]:
        section["spatial_padding_mode"] = paddings[0].value
    return {"vae": section}


def _write_block(block: VAEBlock, suffix: str) -> list[Any]:
    if block.kind is RES:
        return [block.kind.value, {"num_layers": block.layers}]
    values: dict[str, Any] = {"multiplier": block.multiplier}
    if not suffix and block.residual:
        values["residual"] = True
    return [block.kind.value + suffix, values]


def _require_base(config: VideoVAEConfig, where: str) -> None:
    base, rule = config.encoder_base_channels, f"{where} begins with latent_channels={config.latent_channels}"
    require(base == config.latent_channels, "encoder_base_channels", base, rule)


TYPES = {BlockKind.SPACE: "spatial", BlockKind.TIME: "temporal", BlockKind.ALL: "spatiotemporal"}
DIFFUSERS_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "patch_size_t": 1,
    "scaling_factor": 1.0,
    "timestep_conditioning": False,
    "encoder_causal": True,
}
UNREAD = ("resnet_norm_eps", "spatial_compression_ratio", "temporal_compression_ratio", "down_block_types")


def read_diffusers(values: Header) -> VideoVAEConfig:
    """Read diffusers' config.json of the video VAE.

    Raises:
        ValueError: As `read_header`.
    """
    section = Section(values, "vae/config.json")
    section.expect(DIFFUSERS_FIXED)
    section.ignore(*UNREAD, *(key for key in values if key.startswith("_")))
    channels = section.take("latent_channels", int, 128)
    down = section.take("downsample_type", list, ["spatial", "temporal", "spatiotemporal", "spatiotemporal"])
    up = section.take("upsample_type", list, ["spatiotemporal"] * 3)
    _expect_all(section, "spatio_temporal_scaling", len(down), True)
    _expect_all(section, "decoder_spatio_temporal_scaling", len(up), True)
    _expect_all(section, "decoder_inject_noise", len(up) + 1, False)
    widths = [channels, *section.take("block_out_channels", list, [256, 512, 1024, 2048])]
    factors = section.take("upsample_factor", list, [2, 2, 2])
    residual = section.take("upsample_residual", list, [True] * 3)
    tops = section.take("decoder_block_out_channels", list, [256, 512, 1024])
    encoder = [
        VAEBlock(kind=_kind(section, name), multiplier=after // before, residual=True)
        for name, before, after in zip(down, widths, widths[1:], strict=False)
    ]
    decoder = [  # types in the order of computation, the others from pixels to latents
        VAEBlock(kind=_kind(section, name), multiplier=factor, residual=flag)
        for name, factor, flag in zip(up[::-1], factors, residual, strict=False)
    ]
    config = VideoVAEConfig(
        latent_channels=channels,
        patch_size=section.take("patch_size", int, 4),
        encoder_base_channels=channels,
        decoder_base_channels=tops[-1] // 8,
        encoder_blocks=_with_stages(section.take("layers_per_block", list, [4, 6, 6, 2, 2]), encoder),
        decoder_blocks=_with_stages(section.take("decoder_layers_per_block", list, [5, 5, 5, 5]), decoder),
        causal_decoder=section.take("decoder_causal", bool, True),
        encoder_padding=section.take("encoder_spatial_padding_mode", SpatialPadding, SpatialPadding.ZEROS),
        decoder_padding=section.take("decoder_spatial_padding_mode", SpatialPadding, SpatialPadding.REFLECT),
    )
    section.close()
    own = write_diffusers(config)
    for name, given in (("block_out_channels", widths[1:]), ("decoder_block_out_channels", tops)):
        require(given == own[name], f"{section.where}: {name}", given, f"must be {own[name]}")
    return config


def _kind(section: Section, name: str) -> BlockKind:
    kinds = {value: kind for kind, value in TYPES.items()}
    require(name in kinds, f"{section.where}: resampling", name, f"must be one of {', '.join(kinds)}")
    return kinds[name]


def _expect_all(section: Section, name: str, count: int, wanted: bool) -> None:
    values = section.take(name, list, [wanted] * count)
    require(set(values) <= {wanted}, f"{section.where}: {name}", values, f"must all be {wanted}")


def _with_stages(layers: list[int], resamplings: list[VAEBlock]) -> tuple[VAEBlock, ...]:
    rule = f"must be one more than the {len(resamplings)} resamplings"
    require(len(layers) == len(resamplings) + 1, "layers per block", layers, rule)
    stages = [VAEBlock(kind=RES, layers=count) for count in layers]
    return (*(block for pair in zip(stages, resamplings, strict=False) for block in pair), stages[-1])


def write_diffusers(config: VideoVAEConfig) -> dict[str, Any]:
    """Write diffusers' config.json of the video VAE.

    Raises:
        ValueError: diffusers cannot express the network; names what.
    """
    _require_base(config, "diffusers' encoder")
    _require_alternation(config)
    down, up = (
        [block for block in blocks if block.kind is not RES]
        for blocks in (config.encoder_blocks, config.decoder_blocks)
    )
    widths, width = [], config.encoder_base_channels
    for block in down:
        widths.append(width := width * block.multiplier)
    tops, width = [], config.decoder_width
    for block in reversed(up):
        tops.append(width)
        width //= block.multiplier
    return {
        "_class_name": "AutoencoderKLLTX2Video",
        **DIFFUSERS_FIXED,
        "latent_channels": config.latent_channels,
        "patch_size": config.patch_size,
        "block_out_channels": widths,
        "decoder_block_out_channels": tops[::-1],
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(down),
        "layers_per_block": [block.layers for block in config.encoder_blocks if block.kind is RES],
        "decoder_layers_per_block": [block.layers for block in config.decoder_blocks if block.kind is RES],
        "downsample_type": [TYPES[block.kind] for block in down],
        "upsample_type": [TYPES[block.kind] for block in reversed(up)],
        "upsample_residual": [block.residual for block in up],
        "upsample_factor": [block.multiplier for block in up],
        "spatio_temporal_scaling": [True] * len(down),
        "decoder_spatio_temporal_scaling": [True] * len(up),
        "decoder_inject_noise": [False] * (len(up) + 1),
        "decoder_causal": config.causal_decoder,
        "encoder_spatial_padding_mode": config.encoder_padding.value,
        "decoder_spatial_padding_mode": config.decoder_padding.value,
        "spatial_compression_ratio": config.spatial_compression,
        "temporal_compression_ratio": config.temporal_compression,
    }


@functools.cache
def _abstract(config: VideoVAEConfig) -> PyTree:
    side = 2 * config.spatial_compression
    pixels = jax.ShapeDtypeStruct((1, 1 + config.temporal_compression, side, side, 3), jnp.float32)
    return jax.eval_shape(VideoVAE(config).init, jax.random.key(0), pixels)


COMPONENT = Component(
    name="video_vae",
    abstract=_abstract,
    read_own=VideoVAEConfig.from_dict,
    write_own=VideoVAEConfig.to_dict,
    namings={
        LTX2: Naming(
            prefixes=(PREFIX,),
            rules=original_rules,
            read_config=read_header,
            write_config=write_header,
            passed=tuple(PREFIX + name for name in UNUSED),
        ),
        DIFFUSERS: Naming(
            prefixes=("",),
            rules=diffusers_rules,
            read_config=read_diffusers,
            write_config=write_diffusers,
            folder="vae",
        ),
    },
)
