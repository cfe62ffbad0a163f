"""The feature projections and connectors of LTX-2: names and configs in its own files and in diffusers'.

No file says how many hidden states the text model has, except diffusers', nor how many tokens a prompt is padded to:
these are Gemma 3 12B's and the pipelines'. Source: specs/ltx2.md 8.2, 8.3, 9.1, 9.2, appendix A.1.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from converters.component import DIFFUSERS, LTX2, Component, Header, Naming, Section
from converters.rules import Rule, check_rules
from omniforcing_jax.config import GridPrecision, RotaryKind
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig, connectors_spec
from omniforcing_jax.text.features import FeatureNorm
from omniforcing_jax.text.gemma import GEMMA_3_12B

TOKENS, REGISTERS, THETA = 1024, 128, 10_000.0
PROJECTION, NETWORK = "text_embedding_projection.", "model.diffusion_model."
STREAMS = ("video", "audio")
LINEARS = {
    "attn/q": "attn1.to_q",
    "attn/k": "attn1.to_k",
    "attn/v": "attn1.to_v",
    "attn/o": "attn1.to_out.0",
    "attn/gate": "attn1.to_gate_logits",
    "mlp/up": "ff.net.0.proj",
    "mlp/down": "ff.net.2",
}
PER_TOKEN = {  # all of these in a header mean LTX-2.3's features, none of them 2.0's; ltx-core refuses a mixture
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
FIXED = {"connector_norm_output": True, "use_embeddings_connector": True}
NORM_TYPE = "text_encoder_norm_type"
OURS = re.compile(r"(audio_)?connector_\w+")


def original_rules(config: ConnectorsConfig) -> tuple[Rule, ...]:
    """List the table for keys of LTX-2's own files."""
    prefixes = {stream: f"{NETWORK}{stream}_embeddings_connector." for stream in STREAMS}
    projection = f"{PROJECTION}{{}}aggregate_embed"
    return check_rules(_rules(config, projection, prefixes, "transformer_1d_blocks", "{}_norm"))


def diffusers_rules(config: ConnectorsConfig) -> tuple[Rule, ...]:
    """List the table for keys of diffusers' folder `connectors`."""
    prefixes = {stream: f"{stream}_connector." for stream in STREAMS}
    return check_rules(_rules(config, "{}text_proj_in", prefixes, "transformer_blocks", "norm_{}"))


def _rules(
    config: ConnectorsConfig, projection: str, prefixes: Mapping[str, str], layers: str, norm: str
) -> Iterator[Rule]:
    shared = config.norm is FeatureNorm.PER_PROMPT
    for stream in STREAMS[:1] if shared else STREAMS:
        theirs = projection.format("" if shared else f"{stream}_")
        yield Rule(f"features/{stream}/w", f"{theirs}.weight")
        yield Rule(f"features/{stream}/b", f"{theirs}.bias")
    for stream, prefix in prefixes.items():
        yield Rule(f"{stream}/registers", f"{prefix}learnable_registers")
        layer = f"{prefix}{layers}.{{i}}."
        for ours, theirs in LINEARS.items():
            yield Rule(f"{stream}/layers/{ours}/w", f"{layer}{theirs}.weight")
            yield Rule(f"{stream}/layers/{ours}/b", f"{layer}{theirs}.bias")
        for which in ("q", "k"):
            yield Rule(f"{stream}/layers/attn/{which}_norm", f"{layer}attn1.{norm.format(which)}.weight")


def read_header(header: Header) -> ConnectorsConfig:
    """Read what the `transformer` section of an LTX-2 header says of the connectors.

    Raises:
        ValueError: A value is of the wrong kind or not supported; names it.
    """
    values = header.get("transformer")
    if not isinstance(values, Mapping):
        raise ValueError(f"header config={sorted(header)}: must have a transformer section")
    shared = ("caption_channels", "rope_type", "frequencies_precision", NORM_TYPE, *FIXED, *PER_TOKEN)
    kept = {key: value for key, value in values.items() if key in shared or OURS.fullmatch(key)}
    section = Section(kept, "header config, transformer")
    section.expect(FIXED)
    section.ignore("connector_learnable_registers_std")
    norm = _read_norm(section)
    registers = section.take("connector_num_learnable_registers", int, REGISTERS)
    video = _read_connector(section, "", registers, ConnectorConfig(layers=2, heads=30, head_size=128, registers=1))
    audio = _read_connector(section, "audio_", registers, video)
    places = section.take("connector_positional_embedding_max_pos", list, [1])
    require(len(places) == 1, "connector_positional_embedding_max_pos", places, "must be one number in a list")
    config = ConnectorsConfig(
        text_width=section.take("caption_channels", int, GEMMA_3_12B.width),
        text_states=GEMMA_3_12B.states,
        norm=norm,
        video=video,
        audio=audio,
        gated_attention=section.take("connector_apply_gated_attention", bool, False),
        tokens=TOKENS,
        rotary=section.take("rope_type", RotaryKind, RotaryKind.INTERLEAVED),
        theta=THETA,
        grid=section.take("frequencies_precision", GridPrecision, GridPrecision.FLOAT32),
        max_position=places[0],
    )
    section.close()
    return config


def _read_norm(section: Section) -> FeatureNorm:
    newer = section.take("caption_proj_before_connector", bool, False)
    kind = section.take(NORM_TYPE, str, "per_token_rms" if newer else "")
    require(kind == ("per_token_rms" if newer else ""), NORM_TYPE, kind, f"caption_proj_before_connector is {newer}")
    if newer:
        section.expect(PER_TOKEN)
    else:
        section.ignore(*PER_TOKEN)
    return FeatureNorm.PER_TOKEN if newer else FeatureNorm.PER_PROMPT


def _read_connector(section: Section, mark: str, registers: int, default: ConnectorConfig) -> ConnectorConfig:
    return ConnectorConfig(
        layers=section.take(f"{mark}connector_num_layers", int, default.layers),
        heads=section.take(f"{mark}connector_num_attention_heads", int, default.heads),
        head_size=section.take(f"{mark}connector_attention_head_dim", int, default.head_size),
        registers=registers,
    )


def write_header(config: ConnectorsConfig) -> dict[str, Any]:
    """Write what the `transformer` section of an LTX-2 header says of the connectors.

    Raises:
        ValueError: LTX-2's format cannot express it; names the field.
    """
    where = "LTX-2's header cannot express another value"
    same = config.video.registers == config.audio.registers
    require(same, "audio.registers", config.audio.registers, f"must be video.registers={config.video.registers}")
    require(config.tokens == TOKENS, "tokens", config.tokens, f"must be {TOKENS}, {where}")
    require(config.theta == THETA, "theta", config.theta, f"must be {THETA}, {where}")
    states = GEMMA_3_12B.states
    require(config.text_states == states, "text_states", config.text_states, f"must be {states}, {where}")
    section: dict[str, Any] = dict(FIXED)
    for mark, stream in (("", config.video), ("audio_", config.audio)):
        section |= {
            f"{mark}connector_num_layers": stream.layers,
            f"{mark}connector_num_attention_heads": stream.heads,
            f"{mark}connector_attention_head_dim": stream.head_size,
        }
    section |= {
        "caption_channels": config.text_width,
        "connector_num_learnable_registers": config.video.registers,
        "connector_positional_embedding_max_pos": [config.max_position],
        "rope_type": config.rotary.value,
        "frequencies_precision": config.grid.value,
    }
    if config.gated_attention:
        section["connector_apply_gated_attention"] = True
    if config.norm is FeatureNorm.PER_TOKEN:
        section |= {**PER_TOKEN, NORM_TYPE: "per_token_rms"}
    return {"transformer": section}


def read_diffusers(values: Header) -> ConnectorsConfig:
    """Read diffusers' config.json of the connectors; what it leaves out means what diffusers' class supposes.

    Raises:
        ValueError: As `read_header`.
    """
    section = Section(values, "connectors/config.json")
    section.ignore("causal_temporal_positioning", *(key for key in values if key.startswith("_")))
    newer = section.take("per_modality_projections", bool, False)
    bias = section.take("proj_bias", bool, False)
    require(bias == newer, "proj_bias", bias, f"must be per_modality_projections={newer}")
    streams = [
        ConnectorConfig(
            layers=section.take(f"{stream}_connector_num_layers", int, 2),
            heads=section.take(f"{stream}_connector_num_attention_heads", int, 30),
            head_size=section.take(f"{stream}_connector_attention_head_dim", int, 128),
            registers=section.take(f"{stream}_connector_num_learnable_registers", int, REGISTERS),
        )
        for stream in STREAMS
    ]
    for stream, config, default in zip(STREAMS, streams, (4096, 2048), strict=True):
        width = section.take(f"{stream}_hidden_dim", int, default)
        require(not newer or width == config.width, f"{stream}_hidden_dim", width, f"must be {config.width}")
    gated, audio_gated = (section.take(f"{stream}_gated_attn", bool, False) for stream in STREAMS)
    require(gated == audio_gated, "audio_gated_attn", audio_gated, f"must be video_gated_attn={gated}")
    precise = section.take("rope_double_precision", bool, True)
    config = ConnectorsConfig(
        text_width=section.take("caption_channels", int, 3840),
        text_states=section.take("text_proj_in_factor", int, 49),
        norm=FeatureNorm.PER_TOKEN if newer else FeatureNorm.PER_PROMPT,
        video=streams[0],
        audio=streams[1],
        gated_attention=gated,
        tokens=TOKENS,
        rotary=section.take("rope_type", RotaryKind, RotaryKind.INTERLEAVED),
        theta=section.take("rope_theta", float, THETA),
        grid=GridPrecision.FLOAT64 if precise else GridPrecision.FLOAT32,
        max_position=section.take("connector_rope_base_seq_len", int, 4096),
    )
    section.close()
    return config


def write_diffusers(config: ConnectorsConfig) -> dict[str, Any]:
    """Write diffusers' config.json of the connectors.

    Raises:
        ValueError: As `write_header`.
    """
    require(config.tokens == TOKENS, "tokens", config.tokens, f"must be {TOKENS}, diffusers' config cannot express it")
    newer = config.norm is FeatureNorm.PER_TOKEN
    values: dict[str, Any] = {"_class_name": "LTX2TextConnectors"}
    for stream, part in zip(STREAMS, (config.video, config.audio), strict=True):
        values |= {
            f"{stream}_connector_num_layers": part.layers,
            f"{stream}_connector_num_attention_heads": part.heads,
            f"{stream}_connector_attention_head_dim": part.head_size,
            f"{stream}_connector_num_learnable_registers": part.registers,
            f"{stream}_gated_attn": config.gated_attention,
            f"{stream}_hidden_dim": part.width,
        }
    return values | {
        "caption_channels": config.text_width,
        "text_proj_in_factor": config.text_states,
        "connector_rope_base_seq_len": config.max_position,
        "rope_theta": config.theta,
        "rope_double_precision": config.grid is GridPrecision.FLOAT64,
        "rope_type": config.rotary.value,
        "per_modality_projections": newer,
        "proj_bias": newer,
    }


COMPONENT = Component(
    name="connectors",
    abstract=lambda config: abstract(connectors_spec(config)),
    read_own=ConnectorsConfig.from_dict,
    write_own=ConnectorsConfig.to_dict,
    namings={
        LTX2: Naming(
            prefixes=(PROJECTION, *(f"{NETWORK}{stream}_embeddings_connector." for stream in STREAMS)),
            rules=original_rules,
            read_config=read_header,
            write_config=write_header,
        ),
        DIFFUSERS: Naming(
            prefixes=("",),
            rules=diffusers_rules,
            read_config=read_diffusers,
            write_config=write_diffusers,
            folder="connectors",
        ),
    },
)
