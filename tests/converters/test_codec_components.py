"""The codecs' tables: the peers' own models at full size, configs and tensors there and back, refusals by name."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from conversion import to_native, to_source
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core_audio import model_configurator
from random_weights import fill

from converters.component import DIFFUSERS, LTX2
from converters.formats import audio_vae, video_vae, vocoder
from omniforcing_jax.codecs.audio_vae import CHIME_AUDIO_VAE, LTX2_AUDIO_VAE
from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.generator import Final
from omniforcing_jax.codecs.video_config import CHIME_VIDEO_VAE, LTX2_VIDEO_VAE, LTX23_VIDEO_VAE
from omniforcing_jax.codecs.vocoder import CHIME_VOCODER, LTX2_VOCODER, LTX23_VOCODER
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.pipeline.presets import TINY_STREAM

VIDEO, AUDIO, SOUND = video_vae.COMPONENT, audio_vae.COMPONENT, vocoder.COMPONENT
FULL = {
    "video 2.0": (VIDEO, LTX2_VIDEO_VAE, 184),
    "video 2.3": (VIDEO, LTX23_VIDEO_VAE, 170),
    "audio": (AUDIO, LTX2_AUDIO_VAE, 102),
    "vocoder 2.0": (SOUND, LTX2_VOCODER, 194),
    "vocoder 2.3": (SOUND, LTX23_VOCODER, 1227),
}
NAMINGS = [LTX2, DIFFUSERS]
DIFFUSERS_CLASSES = {
    kind.__name__: kind for kind in (AutoencoderKLLTX2Video, AutoencoderKLLTX2Audio, LTX2Vocoder, LTX2VocoderWithBWE)
}


def build(component, naming, config):
    """All tensors of the peer's own model, without memory, from the config that we write; full names and shapes."""
    values = component.namings[naming].table.write(config)
    with torch.device("meta"):
        if naming == DIFFUSERS:
            models = {"": DIFFUSERS_CLASSES[values["_class_name"]].from_config(values)}
        elif component is VIDEO:
            halves = {"encoder": VideoEncoderConfigurator, "decoder": VideoDecoderConfigurator}
            models = {f"vae.{half}.": kind.from_config(values) for half, kind in halves.items()}
        elif component is AUDIO:
            halves = {
                "encoder": model_configurator.AudioEncoderConfigurator,
                "decoder": model_configurator.AudioDecoderConfigurator,
            }
            models = {f"audio_vae.{half}.": kind.from_config(values) for half, kind in halves.items()}
        else:
            models = {"vocoder.": model_configurator.VocoderConfigurator.from_config(values)}
    shapes = {}
    for prefix, model in models.items():
        for name, value in model.state_dict().items():
            where = prefix.split(".")[0] + "." if name.startswith("per_channel_statistics") else prefix
            shapes[where + name] = tuple(value.shape)
    return shapes


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("case", FULL)
def test_at_full_size_the_peer_s_keys_and_shapes_are_ours(case, naming):
    component, config, count = FULL[case]
    theirs = build(component, naming, config)
    assert len(theirs) == count
    used = {name: shape for name, shape in theirs.items() if not component.namings[naming].is_passed(name)}
    assert {p.source: p.source_shape for p in component.expand(config, naming)} == used


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("case", FULL)
def test_a_config_comes_back_as_it_was_written(case, naming):
    component, config, _ = FULL[case]
    table = component.namings[naming].table
    assert table.read(table.write(config)) == config
    assert component.config.from_dict(config.to_dict()) == config


SMALL = {
    "video chime": (VIDEO, CHIME_VIDEO_VAE),
    "audio chime": (AUDIO, CHIME_AUDIO_VAE),
    "vocoder chime": (SOUND, CHIME_VOCODER),
    "vocoder tiny": (SOUND, TINY_STREAM.vocoder),
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("case", SMALL)
def test_tensors_there_and_back_are_bit_exact(case, naming):
    component, config = SMALL[case]
    tree = fill(component.abstract(config))
    ours, theirs = name_leaves(tree), to_source(component, naming, config, tree)
    assert len(theirs) == len(ours)
    assert any(theirs[p.source].shape != ours[p.native].shape for p in component.expand(config, naming))
    jax.tree.map(np.testing.assert_array_equal, to_native(component, naming, config, theirs), tree)


def test_the_published_defaults_are_read_from_sparse_configs():
    header = {"vocoder": {"upsample_initial_channel": 1024, "resblock": "1", "stereo": True}}
    assert SOUND.namings[LTX2].table.read(header) == LTX2_VOCODER
    assert SOUND.namings[DIFFUSERS].table.read({"_class_name": "LTX2Vocoder"}) == LTX2_VOCODER
    assert SOUND.namings[DIFFUSERS].table.read({"_class_name": "LTX2VocoderWithBWE"}) == LTX23_VOCODER
    assert AUDIO.namings[DIFFUSERS].table.read({"_diffusers_version": "0.37.0"}) == LTX2_AUDIO_VAE
    assert VIDEO.namings[DIFFUSERS].table.read({}) == dataclasses.replace(LTX2_VIDEO_VAE, causal_decoder=True)


def test_block_lists_are_read_in_every_spelling_of_a_header():
    header = VIDEO.namings[LTX2].table.write(LTX2_VIDEO_VAE)
    section = header["vae"]
    section["encoder_blocks"] = [
        [name, values["num_layers"] if name == "res_x" else {}] for name, values in section["encoder_blocks"]
    ]
    assert VIDEO.namings[LTX2].table.read(header) == LTX2_VIDEO_VAE


def test_ltx_2_5_s_codec_of_convolutions_is_ltx_2_3_s():
    def listed(suffix, *blocks):
        return [[name if name == "res_x" else name + suffix, value] for name, value in blocks]

    res = [["res_x", {"num_layers": layers}] for layers in (4, 6, 4, 2, 2)]
    names, factors = ("compress_space", "compress_time", "compress_all", "compress_all"), {"encoder": (2, 2, 2, 1)}
    factors["decoder"] = (2, 2, 1, 2)
    lists = {}
    for half, suffix in (("encoder", "_res"), ("decoder", "")):
        between = [[name, {"multiplier": factor}] for name, factor in zip(names, factors[half], strict=True)]
        blocks = [block for pair in zip(res, [*between, None], strict=True) for block in pair if block]
        lists[f"{half}_blocks"] = listed(suffix, *blocks)
    header = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 128,
        "decoder_base_channels": 128,
        "encoder_base_channels": 128,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "spatial_padding_mode": "zeros",
        "causal_decoder": False,
        "timestep_conditioning": False,
        "scaling_factor": 1.0,
        **lists,
    }
    assert VIDEO.namings[LTX2].table.read({"vae": header}) == LTX23_VIDEO_VAE


def change(values, path, value):
    """Set one value deep inside a copied config."""
    first, *rest = path
    return {**values, first: change(values[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("case", "naming", "path", "value", "message"),
    [
        ("video 2.0", LTX2, ["vae", "timestep_conditioning"], True, "timestep_conditioning=True: must be there and"),
        ("video 2.0", LTX2, ["vae", "norm_layer"], "group_norm", "vae.norm_layer='group_norm': must be 'pixel_norm'"),
        ("video 2.0", LTX2, ["vae", "new_idea"], 1, r"vae: unknown keys \['new_idea'\]"),
        ("video 2.0", LTX2, ["vae", "decoder_blocks"], [["attn", {}]], "decoder_blocks=.*'attn' must be one of res_x"),
        ("video 2.3", LTX2, ["vae", "spatial_padding_mode"], "wrap", "spatial_padding_mode='wrap': must be one of"),
        ("video 2.0", DIFFUSERS, ["upsample_type"], ["none"] * 3, "must be one of .'spatial'"),
        ("video 2.0", DIFFUSERS, ["block_out_channels"], [256, 512, 1024, 1500], "block_out_channels=.*1500.*must be"),
        ("audio", LTX2, ["audio_vae", "model", "params", "sampling_rate"], 44100, "sampling_rate=44100: must be 16000"),
        ("audio", DIFFUSERS, ["is_causal"], False, "is_causal=False: must be True"),
        ("vocoder 2.0", LTX2, ["vocoder", "resblock"], "2", "vocoder.resblock='2': must be '1'"),
        (
            "vocoder 2.3",
            LTX2,
            ["vocoder", "bwe", "activation"],
            "snake",
            "bwe.activation='snake': must be there and",
        ),
        ("vocoder 2.3", LTX2, ["vocoder", "bwe", "output_sampling_rate"], 44100, "output_sampling_rate=44100: must be"),
        ("vocoder 2.3", DIFFUSERS, ["bwe_final_act_fn"], "tanh", "bwe_final_act_fn='tanh': must be None"),
    ],
)
def test_a_config_of_another_network_is_refused_by_key(case, naming, path, value, message):
    component, config, _ = FULL[case]
    table = component.namings[naming].table
    with pytest.raises(ValueError, match=message):
        table.read(change(table.write(config), path, value))


@pytest.mark.parametrize("section", ["vae", "audio_vae", "vocoder"])
def test_a_header_without_its_section_is_refused(section):
    component = {"vae": VIDEO, "audio_vae": AUDIO, "vocoder": SOUND}[section]
    with pytest.raises(ValueError, match=rf"header config=\['transformer'\]: must have a {section} section"):
        component.namings[LTX2].table.read({"transformer": {}})


ALTERNATING_NOT = dataclasses.replace(TINY_STREAM.video_vae, encoder_base_channels=8)


@pytest.mark.parametrize(
    ("component", "naming", "config", "message"),
    [
        (VIDEO, LTX2, CHIME_VIDEO_VAE, "encoder_base_channels=16: LTX-2 begins with latent_channels=32"),
        (VIDEO, DIFFUSERS, ALTERNATING_NOT, "encoder_blocks=.*alternate"),
        (
            VIDEO,
            LTX2,
            dataclasses.replace(LTX23_VIDEO_VAE, encoder_padding=SpatialPadding.REFLECT),
            "decoder_padding='zeros': LTX-2's header has one padding",
        ),
        (AUDIO, LTX2, CHIME_AUDIO_VAE, "base_channels=16: must be 64"),
        (AUDIO, DIFFUSERS, CHIME_AUDIO_VAE, "base_channels=16: must be 64"),
        (SOUND, LTX2, CHIME_VOCODER, r"channels=\(320, 12\): LTX-2 halves them"),
        (SOUND, DIFFUSERS, TINY_STREAM.vocoder, "channels=.*: diffusers halves them"),
        (SOUND, LTX2, dataclasses.replace(LTX2_VOCODER, final=Final.CLAMP), "final='clamp': LTX-2 has tanh there"),
    ],
)
def test_what_a_format_cannot_express_is_refused(component, naming, config, message):
    with pytest.raises(ValueError, match=message):
        component.namings[naming].table.write(config)
