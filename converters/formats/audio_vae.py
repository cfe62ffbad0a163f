"""The audio VAE: its keys and config in LTX-2's single file and in diffusers; 2.0 and 2.3 are the same.

Source: ltx-core 1.0.0, ltx_core.model.audio_vae.model_configurator; diffusers 0.42.1, AutoencoderKLLTX2Audio.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.mel import LTX2_MEL
from omniforcing_jax.strict_json import require

from ..component import DIFFUSERS, LTX2, Component, Naming
from ..config_table import ConfigTable
from ..keys import LIST, Entry, Fixed, Form, Key, Repeated
from ..rules import Axes, Rule

PREFIX = "audio_vae."
KERNEL: Axes = (2, 3, 1, 0)


def _conv(native: str, source: str) -> Iterator[Rule]:
    yield Rule(f"params/{native}/kernel", f"{source}.weight", KERNEL)
    yield Rule(f"params/{native}/bias", f"{source}.bias")


def _block(native: str, source: str) -> Iterator[Rule]:
    for conv in ("conv1", "conv2"):
        yield from _conv(f"{native}/{conv}/conv", f"{source}.{conv}.conv")
    yield from _conv(f"{native}/shortcut", f"{source}.nin_shortcut.conv")


def _weights(config: AudioVAEConfig) -> Iterator[Rule]:
    """List the weights, which have the same keys in all formats."""
    for half, way, blocks in (("encoder", "down", config.res_blocks), ("decoder", "up", config.res_blocks + 1)):
        for end in ("conv_in", "conv_out"):
            yield from _conv(f"{half}/{end}/conv", f"{half}.{end}.conv")
        for i in (1, 2):
            yield from _block(f"{half}/mid_block_{i}", f"{half}.mid.block_{i}")
        for level in range(len(config.widths)):
            for i in range(blocks):
                yield from _block(f"{half}/{way}_{level}_block_{i}", f"{half}.{way}.{level}.block.{i}")
    for level in range(len(config.widths)):
        yield from _conv(f"encoder/down_{level}_downsample/conv", f"encoder.down.{level}.downsample.conv")
        yield from _conv(f"decoder/up_{level}_upsample/conv/conv", f"decoder.up.{level}.upsample.conv.conv")


def original_rules(config: AudioVAEConfig) -> tuple[Rule, ...]:
    """List the keys of LTX-2's single file."""
    statistics = PREFIX + "per_channel_statistics."
    return (
        *(Rule(rule.native, PREFIX + rule.source, rule.axes) for rule in _weights(config)),
        Rule("stats/mean", statistics + "mean-of-means"),
        Rule("stats/std", statistics + "std-of-means"),
    )


def diffusers_rules(config: AudioVAEConfig) -> tuple[Rule, ...]:
    """List diffusers' keys."""
    return (*_weights(config), Rule("stats/mean", "latents_mean"), Rule("stats/std", "latents_std"))


DDCONFIG, STFT, MEL = "model.params.ddconfig.", "preprocessing.stft.", "preprocessing.mel."
FIXED = {"double_z": True, "dropout": 0.0, "norm_type": "pixel", "causality_axis": "height"}


def _sizes(before: str, latents: str, base: str, out: str, mel: str = "") -> tuple[Entry, ...]:
    """Sizes of the network, with the keys that the formats call differently.

    Args:
        before: Object that has the keys.
        latents: Key of the latent channels.
        base: Key of the base width.
        out: Key of the output channels, which are the input's.
        mel: Another key of the mel bins.
    """
    return (
        Key("mel_bins", f"{before}mel_bins", int, 64, older=mel),
        Key("audio_channels", f"{before}in_channels", int, 2),
        Repeated(f"{before}{out}", "audio_channels", 2, ", as in_channels"),
        Key("z_channels", f"{before}{latents}", int, 8),
        Key("base_channels", f"{before}{base}", int, 128),
        Key("multipliers", f"{before}ch_mult", LIST, [1, 2, 4]),
        Key("res_blocks", f"{before}num_res_blocks", int, 2),
        Repeated(f"{before}resolution", lambda config: 256, checked=False),
    )


def _refuse_values(value: Any) -> tuple[()]:
    if value:
        raise ValueError("must be empty")
    return ()


NO_ATTENTION = Form(kind=object, to_native=_refuse_values, to_source=lambda _: None)


def _refuse(config: AudioVAEConfig) -> None:
    rule = f"must be {config.latent_size}, the width of a latent: statistics in the file have that length"
    require(config.base_channels == config.latent_size, "base_channels", config.base_channels, rule)


HEADER = ConfigTable(
    config=AudioVAEConfig,
    where="header config, audio_vae",
    section="audio_vae",
    entries=(
        Fixed({"model.params.sampling_rate": LTX2_MEL.sample_rate}),
        Fixed({f"{STFT}filter_length": LTX2_MEL.n_fft, f"{STFT}win_length": LTX2_MEL.n_fft}),
        Fixed({f"{STFT}hop_length": LTX2_MEL.hop, f"{STFT}causal": True}),
        Fixed({f"{MEL}mel_fmin": LTX2_MEL.fmin, f"{MEL}mel_fmax": LTX2_MEL.fmax}),
        Fixed({DDCONFIG + key: value for key, value in FIXED.items()} | {f"{DDCONFIG}downsample_time": False}),
        Fixed({f"{DDCONFIG}resamp_with_conv": True, f"{DDCONFIG}attn_type": "vanilla"}, written=False),
        Fixed({f"{DDCONFIG}mid_block_add_attention": False, f"{DDCONFIG}attn_resolutions": []}, required=True),
        *_sizes(DDCONFIG, "z_channels", "ch", "out_ch", f"{MEL}n_mel_channels"),
        Repeated(f"{MEL}n_mel_channels", "mel_bins", checked=False),
    ),
    unread=(f"(?!{re.escape(DDCONFIG)}).*",),  # what only training read
    refuse=_refuse,
)
MODEL_CONFIG = ConfigTable(
    config=AudioVAEConfig,
    where="audio_vae/config.json",
    entries=(
        Repeated("_class_name", lambda config: "AutoencoderKLLTX2Audio", checked=False),
        Fixed(FIXED | {"mid_block_add_attention": False, "is_causal": True}),
        Fixed({"sample_rate": LTX2_MEL.sample_rate, "mel_hop_length": LTX2_MEL.hop}),
        Key((), "attn_resolutions", NO_ATTENTION, None),
        *_sizes("", "latent_channels", "base_channels", "output_channels"),
    ),
    unread=("_.*",),
    refuse=_refuse,
)


@functools.cache
def _abstract(config: AudioVAEConfig) -> PyTree:
    mel = jax.ShapeDtypeStruct((1, config.mel_rows(2), config.mel_bins, config.audio_channels), jnp.float32)
    return jax.eval_shape(AudioVAE(config).init, jax.random.key(0), mel)


COMPONENT = Component(
    name="audio_vae",
    config=AudioVAEConfig,
    abstract=_abstract,
    namings={
        LTX2: Naming(
            prefixes=(PREFIX,),
            rules=original_rules,
            table=HEADER,
            passed=tuple(f"{PREFIX}per_channel_statistics.{name}" for name in ("channel", "mean-of-stds*")),
        ),
        DIFFUSERS: Naming(rules=diffusers_rules, table=MODEL_CONFIG, folder="audio_vae"),
    },
)
