"""The transformer as a component: its config in an LTX-2 header, in diffusers' config.json and in no file at all.

Names are ltx2_transformer.py's; here are the configs, diffusers' other names, and what OmniForcing supposes.
What a header leaves out means what ltx-core's classes suppose then (interleaved pairs, a float32 grid, gate 1).
No file says whose sigma drives the cross-modal modulation: ltx-core 1.0.0 and diffusers' pipeline cross it.
Source: specs/ltx2.md 2.1, 2.6, 9.2, A.1; specs/omniforcing.md 8.1.
"""

import re
from collections.abc import Mapping
from typing import Any

from converters.component import DIFFUSERS, LTX2, Component, Header, Naming, Section
from converters.ltx2_transformer import PREFIX, RULES
from converters.rules import Rule, check_rules
from omniforcing_jax.config import (
    CrossTimestep,
    GridPrecision,
    ModelConfig,
    RotaryConfig,
    RotaryKind,
    StreamConfig,
)
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import require

# Original names to diffusers', first match wins; each pattern is anchored, because some names contain others.
RENAMES = (
    (r"^(audio_)?patchify_proj\.", r"\1proj_in."),
    (r"^(audio_)?adaln_single\.", r"\1time_embed."),
    (r"^(audio_)?prompt_adaln_single\.", r"\1prompt_adaln."),
    (r"^av_ca_(video|audio)_scale_shift_adaln_single\.", r"av_cross_attn_\1_scale_shift."),
    (r"^av_ca_a2v_gate_adaln_single\.", "av_cross_attn_video_a2v_gate."),
    (r"^av_ca_v2a_gate_adaln_single\.", "av_cross_attn_audio_v2a_gate."),
    (r"\.scale_shift_table_a2v_ca_(video|audio)$", r".\1_a2v_cross_attn_scale_shift_table"),
    (r"\.([qk])_norm\.", r".norm_\1."),
)

FIXED = {  # what ltx-core's loader checks, and what this network takes for granted
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
    "norm_eps": 1e-6,
    "timestep_scale_multiplier": 1000,
}
# What later generations may say, with the value that means this one.
GUARDS = {
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
}
UNREAD = (  # has no effect on this network; the connectors' keys are read by their own table
    *("_class_name", "norm_num_groups", "attention_type", "causal_temporal_positioning", "use_embeddings_connector"),
    *("text_encoder_norm_type", "caption_projection_first_linear", "caption_projection_second_linear"),
    *("caption_proj_input_norm", "connector_norm_output", "cross_attention_dim", "audio_cross_attention_dim"),
)
CONNECTORS = re.compile(r"(audio_)?connector_\w+")


def rename(original: str) -> str:
    """Spell an original name (without prefix) as diffusers does."""
    for pattern, other in RENAMES:
        name, count = re.subn(pattern, other, original)
        if count:
            return name
    return original


def read_header(header: Header) -> ModelConfig:
    """Read the `transformer` section of an LTX-2 header.

    Raises:
        ValueError: A value is missing, of the wrong kind, or not what this network is built for; names it.
    """
    values = header.get("transformer")
    if not isinstance(values, Mapping):
        raise ValueError(f"header config={sorted(header)}: must have a transformer section")
    section = Section(values, "header config, transformer")
    section.expect(FIXED | GUARDS)
    section.ignore(*UNREAD, *(key for key in values if CONNECTORS.fullmatch(key)))
    seconds, rows, columns = _three(section.take("positional_embedding_max_pos", list, [20, 2048, 2048]))
    require(rows == columns, "positional_embedding_max_pos", [seconds, rows, columns], "rows and columns must be equal")
    audio_seconds = section.take("audio_positional_embedding_max_pos", list, [20])
    require(audio_seconds == [seconds], "audio_positional_embedding_max_pos", audio_seconds, f"must be [{seconds}]")
    captions, projected = (
        section.take("caption_channels", int, 3840),
        section.take("caption_proj_before_connector", bool, False),
    )
    video, audio = (_stream(section, mark) for mark in ("", "audio_"))
    config = ModelConfig(
        layers=section.take("num_layers", int, 48),
        video=video,
        audio=audio,
        caption_channels=None if projected else captions,
        rotary=RotaryConfig(
            kind=section.take("rope_type", RotaryKind, RotaryKind.INTERLEAVED),
            theta=section.take("positional_embedding_theta", float, 1e4),
            max_seconds=float(seconds),
            max_pixels=float(rows),
            grid=section.take("frequencies_precision", GridPrecision, GridPrecision.FLOAT32),
        ),
        cross_timestep=CrossTimestep.CROSS,
        gate_multiplier=section.take("av_ca_timestep_scale_multiplier", float, 1.0),
        gated_attention=section.take("apply_gated_attention", bool, False),
        text_adaln=section.take("cross_attention_adaln", bool, False),
    )
    section.close()
    return config


def _stream(section: Section, mark: str) -> StreamConfig:
    channels = section.take(f"{mark}in_channels", int, 128)
    out = section.take(f"{mark}out_channels", int, channels)
    require(out == channels, f"{mark}out_channels", out, f"must be {mark}in_channels={channels}")
    return StreamConfig(
        latent_channels=channels,
        heads=section.take(f"{mark}num_attention_heads", int, 32),
        head_size=section.take(f"{mark}attention_head_dim", int, 64 if mark else 128),
    )


def _three(values: list[Any]) -> list[Any]:
    is_size = len(values) == 3 and all(type(value) in (int, float) for value in values)
    require(is_size, "positional_embedding_max_pos", values, "must be [seconds, rows, columns]")
    return values


def write_header(config: ModelConfig) -> dict[str, Any]:
    """Write the `transformer` section of an LTX-2 header, all that ltx-core's strict loader asks for.

    Raises:
        ValueError: The network has what LTX-2's format lacks (sinks, log-ratio scaling); names it.
    """
    _require_plain(config, "LTX-2's header")
    section: dict[str, Any] = {"_class_name": "AVTransformer3DModel", **FIXED}
    for mark, stream in (("", config.video), ("audio_", config.audio)):
        section |= {
            f"{mark}in_channels": stream.latent_channels,
            f"{mark}out_channels": stream.latent_channels,
            f"{mark}num_attention_heads": stream.heads,
            f"{mark}attention_head_dim": stream.head_size,
            f"{mark}cross_attention_dim": stream.width,
        }
    section |= {
        "num_layers": config.layers,
        "positional_embedding_theta": config.rotary.theta,
        "positional_embedding_max_pos": [_whole(config.rotary.max_seconds), *2 * [_whole(config.rotary.max_pixels)]],
        "audio_positional_embedding_max_pos": [_whole(config.rotary.max_seconds)],
        "rope_type": config.rotary.kind.value,
        "frequencies_precision": config.rotary.grid.value,
        "av_ca_timestep_scale_multiplier": config.gate_multiplier,
    }
    if config.caption_channels is not None:
        section["caption_channels"] = config.caption_channels
    flags = {
        "apply_gated_attention": config.gated_attention,
        "cross_attention_adaln": config.text_adaln,
        # ltx-core's loader of the connectors takes it, even when false, for a part of LTX-2.3's text path.
        "caption_proj_before_connector": config.caption_channels is None,
    }
    return {"transformer": section | {name: True for name, value in flags.items() if value}}


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _require_plain(config: ModelConfig, where: str) -> None:
    require(config.sinks == 0, "sinks", config.sinks, f"{where} cannot express sink tokens")
    require(not config.log_ratio, "log_ratio", True, f"{where} cannot express log-ratio scaling")


DIFFUSERS_FIXED = {
    "patch_size": 1,
    "patch_size_t": 1,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "attention_bias": True,
    "attention_out_bias": True,
    "causal_offset": 1,
    "timestep_scale_multiplier": 1000,
}


def read_diffusers(values: Header) -> ModelConfig:
    """Read diffusers' config.json of the transformer; what it leaves out means what diffusers' class supposes.

    Raises:
        ValueError: As `read_header`.
    """
    where = "transformer/config.json"
    section = Section(values, where)
    section.expect(DIFFUSERS_FIXED | GUARDS)
    section.ignore("perturbed_attn", *(key for key in values if key.startswith("_")))
    scales = section.take("vae_scale_factors", list, [8, 32, 32])
    require(len(scales) == 3 and scales[0] == 8 and scales[1] == scales[2], "vae_scale_factors", scales, "as [8, s, s]")
    seconds, audio_seconds = (section.take(f"{mark}pos_embed_max_pos", int, 20) for mark in ("", "audio_"))
    require(seconds == audio_seconds, "audio_pos_embed_max_pos", audio_seconds, f"must be {seconds}")
    rows, columns = (section.take(f"base_{side}", int, 2048) for side in ("height", "width"))
    require(rows == columns, "base_width", columns, f"must be base_height={rows}")
    video, audio = (_stream(section, mark) for mark in ("", "audio_"))
    for mark, stream in (("", video), ("audio_", audio)):
        context = section.take(f"{mark}cross_attention_dim", int, stream.width)
        require(context == stream.width, f"{mark}cross_attention_dim", context, f"must be {stream.width}")
    gated, modulated = (_both(section, name, f"audio_{name}") for name in ("gated_attn", "cross_attn_mod"))
    captions, projects = section.take("caption_channels", int, 3840), section.take("use_prompt_embeddings", bool, True)
    precise = section.take("rope_double_precision", bool, True)
    config = ModelConfig(
        layers=section.take("num_layers", int, 48),
        video=video,
        audio=audio,
        caption_channels=captions if projects else None,
        rotary=RotaryConfig(
            kind=section.take("rope_type", RotaryKind, RotaryKind.INTERLEAVED),
            theta=section.take("rope_theta", float, 1e4),
            max_seconds=float(seconds),
            max_pixels=float(rows),
            grid=GridPrecision.FLOAT64 if precise else GridPrecision.FLOAT32,
        ),
        cross_timestep=CrossTimestep.CROSS,
        gate_multiplier=section.take("cross_attn_timestep_scale_multiplier", float, 1000.0),
        gated_attention=gated,
        text_adaln=modulated,
        spatial_compression=scales[1],
    )
    section.close()
    return config


def _both(section: Section, name: str, other: str) -> bool:
    value, second = section.take(name, bool, False), section.take(other, bool, False)
    require(value == second, other, second, f"must be {name}={value}")
    return value


def write_diffusers(config: ModelConfig) -> dict[str, Any]:
    """Write diffusers' config.json of the transformer.

    Raises:
        ValueError: As `write_header`; also where diffusers wants a whole number and has none.
    """
    _require_plain(config, "diffusers' transformer")
    wholes = {"gate_multiplier": config.gate_multiplier, "max_seconds": config.rotary.max_seconds}
    for name, value in (wholes | {"max_pixels": config.rotary.max_pixels}).items():
        require(value.is_integer(), name, value, "diffusers' transformer needs a whole number")
    newer = config.text_adaln or config.gated_attention
    values: dict[str, Any] = {"_class_name": "LTX2VideoTransformer3DModel", **DIFFUSERS_FIXED}
    for mark, stream in (("", config.video), ("audio_", config.audio)):
        values |= {
            f"{mark}in_channels": stream.latent_channels,
            f"{mark}out_channels": stream.latent_channels,
            f"{mark}num_attention_heads": stream.heads,
            f"{mark}attention_head_dim": stream.head_size,
            f"{mark}cross_attention_dim": stream.width,
            f"{mark}gated_attn": config.gated_attention,
            f"{mark}cross_attn_mod": config.text_adaln,
            f"{mark}pos_embed_max_pos": int(config.rotary.max_seconds),
        }
    return values | {
        "vae_scale_factors": [8, config.spatial_compression, config.spatial_compression],
        "base_height": int(config.rotary.max_pixels),
        "base_width": int(config.rotary.max_pixels),
        "num_layers": config.layers,
        "caption_channels": config.caption_channels or 3840,
        "use_prompt_embeddings": config.caption_channels is not None,
        "rope_theta": config.rotary.theta,
        "rope_double_precision": config.rotary.grid is GridPrecision.FLOAT64,
        "rope_type": config.rotary.kind.value,
        "cross_attn_timestep_scale_multiplier": int(config.gate_multiplier),
        "perturbed_attn": newer,  # value pass-through under guidance, as LTX-2.3's published config has it
    }


ORIGINAL = check_rules(Rule(rule.ours, PREFIX + rule.theirs, rule.axes) for rule in RULES)
OTHER = check_rules(Rule(rule.ours, rename(rule.theirs), rule.axes) for rule in RULES)

COMPONENT = Component(
    name="transformer",
    abstract=lambda config: abstract(transformer_spec(config)),
    read_own=ModelConfig.from_dict,
    write_own=ModelConfig.to_dict,
    namings={
        LTX2: Naming(
            prefixes=(PREFIX,), rules=lambda config: ORIGINAL, read_config=read_header, write_config=write_header
        ),
        DIFFUSERS: Naming(
            prefixes=("",),
            rules=lambda config: OTHER,
            read_config=read_diffusers,
            write_config=write_diffusers,
            folder="transformer",
        ),
    },
)
