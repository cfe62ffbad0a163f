"""The video VAE of convolutions: its keys and config in LTX-2's files and in diffusers, 2.0 to 2.5.

Both halves are lists of blocks. LTX-2 numbers the blocks of a half. diffusers groups residual blocks with the
resampling next to them; its config is in video_vae_lists.py.

Source: ltx-core 1.0.0, ltx_core.model.video_vae.model_configurator; diffusers 0.42.1, AutoencoderKLLTX2Video.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import BlockKind, VAEBlock, VideoVAEConfig
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.strict_json import shorten

from ..component import DIFFUSERS, LTX2, Component, Naming
from ..config_table import ConfigTable
from ..keys import ABSENT, Fixed, Form, Key, Repeated, choice
from ..rules import Axes, Rule
from ..section import Section
from . import video_vae_lists
from .video_vae_lists import refuse_base, require_alternation

PREFIX = "vae."
STATISTICS = "per_channel_statistics."
UNUSED = tuple(STATISTICS + name for name in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means"))
KERNEL: Axes = (2, 3, 4, 1, 0)
RES = BlockKind.RES
CONVOLUTIONS, DIFFUSION = "CausalVideoAutoencoder", "CausalDiffusionVAE"

Spell = Callable[[str, int, int], str]
"""Returns a block's key from its half, its place in the order of computation, and the half's number of resamplings."""


def make_rules(config: VideoVAEConfig, spell: Spell, layers: str, mean: str, std: str) -> Iterator[Rule]:
    """List the keys of a format.

    Args:
        config: The network.
        spell: Returns the key of a block.
        layers: Key of the layers in a residual stage.
        mean: Key of the latents' mean.
        std: Key of their standard deviation.
    """
    halves = (("encoder", "down_blocks", config.encoder_blocks), ("decoder", "up_blocks", config.decoder_blocks[::-1]))
    for half, native, blocks in halves:
        resamplings = sum(block.kind is not RES for block in blocks)
        for end in ("conv_in", "conv_out"):
            yield from _conv(f"{half}/{end}", f"{half}.{end}")
        for i, block in enumerate(blocks):
            place = f"{half}.{spell(half, i, resamplings)}"
            if block.kind is not RES:
                yield from _conv(f"{half}/{native}_{i}/conv", f"{place}.conv")
            for j in range(block.layers):
                for conv in ("conv1", "conv2"):
                    yield from _conv(f"{half}/{native}_{i}/res_blocks_{j}/{conv}", f"{place}.{layers}.{j}.{conv}")
    yield Rule("stats/latents_mean", mean)
    yield Rule("stats/latents_std", std)


def _conv(native: str, source: str) -> Iterator[Rule]:
    yield Rule(f"params/{native}/kernel", f"{source}.conv.weight", KERNEL)
    yield Rule(f"params/{native}/bias", f"{source}.conv.bias")


def _original_place(half: str, i: int, resamplings: int) -> str:
    return f"{'down' if half == 'encoder' else 'up'}_blocks.{i}"


def _diffusers_place(half: str, i: int, resamplings: int) -> str:
    """Return a block's key: stages and resamplings alternate, and the stage at the latents is `mid_block`."""
    way, is_decoder = ("down", False) if half == "encoder" else ("up", True)
    stage, is_resampling = divmod(i, 2)
    if is_resampling:
        return f"{way}_blocks.{stage}.{way}samplers.0"
    if i == (0 if is_decoder else 2 * resamplings):
        return "mid_block"
    return f"{way}_blocks.{stage - is_decoder}"


def original_rules(config: VideoVAEConfig) -> tuple[Rule, ...]:
    """List the keys of LTX-2's single file."""
    mean, std = f"{STATISTICS}mean-of-means", f"{STATISTICS}std-of-means"
    rules = make_rules(config, _original_place, "res_blocks", mean, std)
    return tuple(Rule(rule.native, PREFIX + rule.source, rule.axes) for rule in rules)


def diffusers_rules(config: VideoVAEConfig) -> tuple[Rule, ...]:
    """List diffusers' keys.

    Raises:
        ValueError: Residual stages and resamplings do not alternate.
    """
    require_alternation(config)
    return tuple(make_rules(config, _diffusers_place, "resnets", "latents_mean", "latents_std"))


def _read_block(entry: Any, half: str) -> dict[str, Any]:
    """Read `[name, {...}]` or `[name, layers]`."""
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
        raise ValueError("must be lists of [name, values]")
    name, values = entry
    values = {"num_layers": values} if type(values) is int else values
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}={shorten(values)}: must be a number of layers or an object")
    section = Section(values, name)
    kinds = {kind.value + _suffix(kind, half): kind for kind in BlockKind}
    if name not in kinds:
        raise ValueError(f"'{name}' must be one of {', '.join(kinds)}")
    kind, block = kinds[name], {"kind": kinds[name]}
    if kind is RES:
        Fixed({"inject_noise": False}).read(section, {})
        block |= {"layers": section.take("num_layers", int)}
    elif half == "encoder":
        block |= {"multiplier": section.take("multiplier", int, 2), "residual": True}
    else:
        residual = section.take("residual", bool, False) and kind is BlockKind.ALL  # others do not listen to it
        block |= {"multiplier": section.take("multiplier", int, 1), "residual": residual}
    section.close(())
    return block


def _write_block(block: VAEBlock, half: str) -> list[Any]:
    if block.kind is RES:
        return [block.kind.value, {"num_layers": block.layers}]
    values: dict[str, Any] = {"multiplier": block.multiplier}
    if half == "decoder" and block.residual:
        if block.kind is not BlockKind.ALL:
            raise ValueError("LTX-2 has a residual decoder block of compress_all only")
        values["residual"] = True
    return [block.kind.value + _suffix(block.kind, half), values]


def _suffix(kind: BlockKind, half: str) -> str:
    return "_res" if half == "encoder" and kind is not RES else ""


def _block_list(half: str) -> Form:
    return Form(
        kind=list,
        to_native=lambda entries: tuple(_read_block(entry, half) for entry in entries),
        to_source=lambda blocks: [_write_block(block, half) for block in blocks],
    )


def _read_padding(value: Any) -> tuple[SpatialPadding, SpatialPadding]:
    if value is ABSENT:
        return SpatialPadding.ZEROS, SpatialPadding.REFLECT
    return 2 * (choice(SpatialPadding).to_native(value),)


def _write_padding(paddings: tuple[SpatialPadding, SpatialPadding]) -> Any:
    if paddings == _read_padding(ABSENT):
        return ABSENT
    if paddings[0] is not paddings[1]:
        raise ValueError("LTX-2's header has one padding for both halves")
    return paddings[0].value


def _read_class(name: str) -> tuple[()]:
    rule = f"must be {CONVOLUTIONS!r}"
    if name == DIFFUSION:
        rule += "; this is LTX-2.5's diffusion decoder, bring ltx-2.5-video-vae-conv, whose latents are the same"
    if name != CONVOLUTIONS:
        raise ValueError(rule)
    return ()


CLASS = Form(kind=str, to_native=_read_class, to_source=lambda _: CONVOLUTIONS)
TWICE = Form(kind=int, to_native=lambda value: (value, value), to_source=lambda values: values[0])
PADDING = Form(kind=object, to_native=_read_padding, to_source=_write_padding)


HEADER = ConfigTable(
    config=VideoVAEConfig,
    where="header config, vae",
    section="vae",
    entries=(
        Key((), "_class_name", CLASS, CONVOLUTIONS),
        Fixed({"dims": 3, "in_channels": 3, "out_channels": 3, "norm_layer": "pixel_norm"}),
        Fixed({"latent_log_var": "uniform", "use_quant_conv": False, "scaling_factor": 1.0}),
        Fixed({"timestep_conditioning": False}, required=True),
        Key(("latent_channels", "encoder_base_channels"), "latent_channels", TWICE, 128),
        Repeated("encoder_base_channels", "latent_channels", rule=", as latent_channels"),
        Key("decoder_base_channels", "decoder_base_channels", int, 128),
        Key("patch_size", "patch_size", int, 4),
        Key("causal_decoder", "causal_decoder", bool, False),
        Key("encoder_blocks", "encoder_blocks", _block_list("encoder")),
        Key("decoder_blocks", "decoder_blocks", _block_list("decoder")),
        Key(("encoder_padding", "decoder_padding"), "spatial_padding_mode", PADDING, ABSENT),
    ),
    refuse=lambda config: refuse_base(config, "LTX-2"),
)


@functools.cache
def _abstract(config: VideoVAEConfig) -> PyTree:
    side = 2 * config.spatial_compression
    pixels = jax.ShapeDtypeStruct((1, 1 + config.temporal_compression, side, side, 3), jnp.float32)
    return jax.eval_shape(VideoVAE(config).init, jax.random.key(0), pixels)


COMPONENT = Component(
    name="video_vae",
    config=VideoVAEConfig,
    abstract=_abstract,
    namings={
        LTX2: Naming(
            prefixes=(PREFIX,),
            rules=original_rules,
            table=HEADER,
            passed=tuple(PREFIX + name for name in UNUSED),
        ),
        DIFFUSERS: Naming(rules=diffusers_rules, table=video_vae_lists.MODEL_CONFIG, folder="vae"),
    },
)
