"""The audio VAE as a component: names and configs of LTX-2's single file and of diffusers; 2.0 and 2.3 are the same.

Source: specs/ltx2.md 7.2, 9.1, 9.2, A.3; what a config leaves out means what the format's own class supposes.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from converters.component import DIFFUSERS, LTX2, Component, Header, Naming, Section
from converters.rules import Axes, Rule
from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.mel import LTX2_MEL
from omniforcing_jax.strict_json import require

PREFIX = "audio_vae."
KERNEL: Axes = (2, 3, 1, 0)


def _conv(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"params/{ours}/kernel", f"{theirs}.weight", KERNEL)
    yield Rule(f"params/{ours}/bias", f"{theirs}.bias")


def _block(ours: str, theirs: str) -> Iterator[Rule]:
    for conv in ("conv1", "conv2"):
        yield from _conv(f"{ours}/{conv}/conv", f"{theirs}.{conv}.conv")
    yield from _conv(f"{ours}/shortcut", f"{theirs}.nin_shortcut.conv")


def _weights(config: AudioVAEConfig) -> Iterator[Rule]:
    """List the weights, which every format calls the same."""
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
    """List the names of LTX-2's single file."""
    statistics = PREFIX + "per_channel_statistics."
    return (
        *(Rule(rule.ours, PREFIX + rule.theirs, rule.axes) for rule in _weights(config)),
        Rule("stats/mean", statistics + "mean-of-means"),
        Rule("stats/std", statistics + "std-of-means"),
    )


def diffusers_rules(config: AudioVAEConfig) -> tuple[Rule, ...]:
    """List diffusers' names."""
    return (*_weights(config), Rule("stats/mean", "latents_mean"), Rule("stats/std", "latents_std"))


FIXED = {
    "double_z": True,
    "dropout": 0.0,
    "norm_type": "pixel",
    "causality_axis": "height",
    "resamp_with_conv": True,
    "attn_type": "vanilla",
}
STFT = {"filter_length": LTX2_MEL.n_fft, "win_length": LTX2_MEL.n_fft, "hop_length": LTX2_MEL.hop, "causal": True}
MEL = {"mel_fmin": LTX2_MEL.fmin, "mel_fmax": LTX2_MEL.fmax}


def read_header(header: Header) -> AudioVAEConfig:
    """Read the `audio_vae` section of an LTX-2 header; what only its training read is not looked at.

    Raises:
        ValueError: A value is missing, of the wrong kind, or not what this network is built for; names it.
    """
    section = _inside(header, "header config", "audio_vae")
    params = _inside(_inside(section, "header config, audio_vae", "model"), "audio_vae.model", "params")
    require(params.get("sampling_rate", 16000) == LTX2_MEL.sample_rate, *_rate(params))
    preprocessing = section.get("preprocessing", {})
    for name, fixed in (("stft", STFT), ("mel", MEL)):
        Section(preprocessing.get(name, {}), f"header config, audio_vae.preprocessing.{name}").expect(fixed)
    values = Section(_inside(params, "audio_vae.model.params", "ddconfig"), "header config, audio_vae ddconfig")
    values.expect(FIXED | {"downsample_time": False})
    values.ignore("resolution")
    attention = values.take("mid_block_add_attention", bool, True)
    require(not attention, f"{values.where}.mid_block_add_attention", attention, "must be there and false")
    at = values.take("attn_resolutions", list, [8, 16, 32])
    require(not at, f"{values.where}.attn_resolutions", at, "must be there and empty")
    bins = preprocessing.get("mel", {}).get("n_mel_channels", 64)
    channels = values.take("in_channels", int, 2)
    require((out := values.take("out_ch", int, 2)) == channels, f"{values.where}.out_ch", out, f"must be {channels}")
    config = AudioVAEConfig(
        mel_bins=values.take("mel_bins", int, bins),
        audio_channels=channels,
        z_channels=values.take("z_channels", int, 8),
        base_channels=values.take("ch", int, 128),
        multipliers=tuple(values.take("ch_mult", list, [1, 2, 4])),
        res_blocks=values.take("num_res_blocks", int, 2),
    )
    values.close()
    return config


def _inside(values: Header, where: str, name: str) -> Mapping[str, Any]:
    inner = values.get(name)
    if not isinstance(inner, Mapping):
        raise ValueError(f"{where}={sorted(values)}: must have a {name} section")
    return inner


def _rate(params: Header) -> tuple[str, Any, str]:
    return "audio_vae.model.params.sampling_rate", params.get("sampling_rate"), f"must be {LTX2_MEL.sample_rate}"


def write_header(config: AudioVAEConfig) -> dict[str, Any]:
    """Write the `audio_vae` section of an LTX-2 header.

    Raises:
        ValueError: LTX-2's format cannot express the network; names what.
    """
    _require_statistics(config, "LTX-2")
    ddconfig = {
        "double_z": True,
        "mel_bins": config.mel_bins,
        "z_channels": config.z_channels,
        "resolution": 256,
        "downsample_time": False,
        "in_channels": config.audio_channels,
        "out_ch": config.audio_channels,
        "ch": config.base_channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
        "mid_block_add_attention": False,
        "norm_type": "pixel",
        "causality_axis": "height",
    }
    return {
        "audio_vae": {
            "model": {"params": {"ddconfig": ddconfig, "sampling_rate": LTX2_MEL.sample_rate}},
            "preprocessing": {"stft": STFT, "mel": {"n_mel_channels": config.mel_bins, **MEL}},
        }
    }


def _require_statistics(config: AudioVAEConfig, where: str) -> None:
    rule = f"must be {config.latent_size}, the width of a latent: {where} keeps statistics of that length"
    require(config.base_channels == config.latent_size, "base_channels", config.base_channels, rule)


DIFFUSERS_FIXED = {
    "double_z": True,
    "dropout": 0.0,
    "norm_type": "pixel",
    "causality_axis": "height",
    "mid_block_add_attention": False,
    "sample_rate": LTX2_MEL.sample_rate,
    "mel_hop_length": LTX2_MEL.hop,
    "is_causal": True,
}


def read_diffusers(values: Header) -> AudioVAEConfig:
    """Read diffusers' config.json of the audio VAE.

    Raises:
        ValueError: As `read_header`.
    """
    section = Section(values, "audio_vae/config.json")
    section.expect(DIFFUSERS_FIXED)
    require(not values.get("attn_resolutions"), "attn_resolutions", values.get("attn_resolutions"), "must be empty")
    section.ignore("resolution", "attn_resolutions", *(key for key in values if key.startswith("_")))
    channels = section.take("in_channels", int, 2)
    require((out := section.take("output_channels", int, 2)) == channels, "output_channels", out, f"must be {channels}")
    config = AudioVAEConfig(
        mel_bins=section.take("mel_bins", int, 64),
        audio_channels=channels,
        z_channels=section.take("latent_channels", int, 8),
        base_channels=section.take("base_channels", int, 128),
        multipliers=tuple(section.take("ch_mult", list, [1, 2, 4])),
        res_blocks=section.take("num_res_blocks", int, 2),
    )
    section.close()
    return config


def write_diffusers(config: AudioVAEConfig) -> dict[str, Any]:
    """Write diffusers' config.json of the audio VAE.

    Raises:
        ValueError: diffusers cannot express the network; names what.
    """
    _require_statistics(config, "diffusers")
    return {
        "_class_name": "AutoencoderKLLTX2Audio",
        **DIFFUSERS_FIXED,
        "mel_bins": config.mel_bins,
        "in_channels": config.audio_channels,
        "output_channels": config.audio_channels,
        "latent_channels": config.z_channels,
        "base_channels": config.base_channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.res_blocks,
        "attn_resolutions": None,
        "resolution": 256,
    }


@functools.cache
def _abstract(config: AudioVAEConfig) -> PyTree:
    mel = jax.ShapeDtypeStruct((1, config.mel_rows(2), config.mel_bins, config.audio_channels), jnp.float32)
    return jax.eval_shape(AudioVAE(config).init, jax.random.key(0), mel)


COMPONENT = Component(
    name="audio_vae",
    abstract=_abstract,
    read_own=AudioVAEConfig.from_dict,
    write_own=AudioVAEConfig.to_dict,
    namings={
        LTX2: Naming(
            prefixes=(PREFIX,),
            rules=original_rules,
            read_config=read_header,
            write_config=write_header,
            passed=tuple(f"{PREFIX}per_channel_statistics.{name}" for name in ("channel", "mean-of-stds*")),
        ),
        DIFFUSERS: Naming(
            prefixes=("",),
            rules=diffusers_rules,
            read_config=read_diffusers,
            write_config=write_diffusers,
            folder="audio_vae",
        ),
    },
)
