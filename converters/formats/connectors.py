"""The feature projections and connectors: their keys and config in LTX-2's files and in diffusers, 2.0 and 2.3.

Only diffusers' config has the number of the text model's hidden states, and none has the length that prompts are padded
to. The values for LTX-2's files are Gemma 3 12B's and the pipelines'.

Source: ltx-core 1.0.0, ltx_core.text_encoders.gemma.encoders.encoder_configurator; diffusers 0.42.1,
LTX2TextConnectors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from omniforcing_jax.config import GridPrecision, RotaryKind
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.text.connector import ConnectorsConfig, connectors_spec
from omniforcing_jax.text.features import FeatureNorm
from omniforcing_jax.text.gemma_config import GEMMA_3_12B

from ..component import DIFFUSERS, LTX2, Component, Naming
from ..config_table import ConfigTable, Generations
from ..keys import ABSENT, Constant, Entry, Fixed, Form, Key, Repeated
from ..rules import Rule, check_rules
from .transformer import IS_FLOAT64

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


def original_rules(config: ConnectorsConfig) -> tuple[Rule, ...]:
    """List the keys of LTX-2's own files."""
    prefixes = {stream: f"{NETWORK}{stream}_embeddings_connector." for stream in STREAMS}
    projection = f"{PROJECTION}{{}}aggregate_embed"
    return check_rules(_rules(config, projection, prefixes, "transformer_1d_blocks", "{}_norm"))


def diffusers_rules(config: ConnectorsConfig) -> tuple[Rule, ...]:
    """List the keys of diffusers' folder `connectors`."""
    prefixes = {stream: f"{stream}_connector." for stream in STREAMS}
    return check_rules(_rules(config, "{}text_proj_in", prefixes, "transformer_blocks", "norm_{}"))


def _rules(
    config: ConnectorsConfig, projection: str, prefixes: Mapping[str, str], layers: str, norm: str
) -> Iterator[Rule]:
    is_shared = config.norm is FeatureNorm.PER_PROMPT
    for stream in STREAMS[:1] if is_shared else STREAMS:
        source = projection.format("" if is_shared else f"{stream}_")
        yield Rule(f"features/{stream}/w", f"{source}.weight")
        yield Rule(f"features/{stream}/b", f"{source}.bias")
    for stream, prefix in prefixes.items():
        yield Rule(f"{stream}/registers", f"{prefix}learnable_registers")
        layer = f"{prefix}{layers}.{{i}}."
        for native, source in LINEARS.items():
            yield Rule(f"{stream}/layers/{native}/w", f"{layer}{source}.weight")
            yield Rule(f"{stream}/layers/{native}/b", f"{layer}{source}.bias")
        for which in ("q", "k"):
            yield Rule(f"{stream}/layers/attn/{which}_norm", f"{layer}attn1.{norm.format(which)}.weight")


NEWER = "caption_proj_before_connector"
NEWER_FLAGS = {  # all of these in a header mean LTX-2.3's features, none of them 2.0's; ltx-core refuses a mixture
    NEWER: True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
NORM_TYPE, PER_TOKEN = "text_encoder_norm_type", "per_token_rms"


def _equal(values: tuple[Any, Any]) -> Any:
    if values[0] != values[1]:
        raise ValueError(f"must be the video's, {values[0]!r}: the header has one key for both")
    return values[0]


def _one(values: list[Any]) -> Any:
    if len(values) != 1:
        raise ValueError("must be one number in a list")
    return values[0]


def _read_norm(value: str) -> tuple[()]:
    if value.lower() != PER_TOKEN:  # LTX-2.5's header has capital letters
        raise ValueError(f"must be {PER_TOKEN!r}")
    return ()


NORM = Form(kind=str, to_native=_read_norm, to_source=lambda _: PER_TOKEN)
FOR_BOTH = Form(kind=int, to_native=lambda value: (value, value), to_source=_equal)
LIKE_VIDEO = Form(  # the audio's key may be left out
    kind=(int, int), to_native=lambda values: (values[0], values[0] if values[1] is ABSENT else values[1])
)
ONE = Form(kind=list, to_native=_one, to_source=lambda value: [value])


def _for_streams(name: str, key: str, default: int) -> Key:
    return Key((f"video.{name}", f"audio.{name}"), (key, f"audio_{key}"), LIKE_VIDEO, (default, ABSENT))


def _header(norm: FeatureNorm, *entries: Entry) -> ConfigTable:
    """Return the table of one generation; the connectors' keys are in the transformer's section."""
    rule = "must be {}, LTX-2's header cannot express another value"
    return ConfigTable(
        config=ConnectorsConfig,
        where="header config, transformer",
        section="transformer",
        entries=(
            Constant("norm", norm),
            *entries,
            Fixed({"connector_norm_output": True, "use_embeddings_connector": True}),
            Fixed({"connector_ff_bias": True}, written=False),
            *(
                Constant(native, value, rule.format(value))
                for native, value in (("tokens", 1024), ("theta", 10_000.0), ("text_states", GEMMA_3_12B.states))
            ),
            Key("text_width", "caption_channels", int, GEMMA_3_12B.width),
            _for_streams("layers", "connector_num_layers", 2),
            _for_streams("heads", "connector_num_attention_heads", 30),
            _for_streams("head_size", "connector_attention_head_dim", 128),
            Key(("video.registers", "audio.registers"), "connector_num_learnable_registers", FOR_BOTH, 128),
            Key("gated_attention", "connector_apply_gated_attention", bool, False, sparse=True),
            Key("max_position", "connector_positional_embedding_max_pos", ONE, [1]),
            Key("rotary", "rope_type", RotaryKind, "interleaved"),
            Key("grid", "frequencies_precision", GridPrecision, "float32"),
        ),
        unread=("connector_learnable_registers_std", "(?!(audio_)?connector_).*"),
    )


HEADER_2_0 = _header(FeatureNorm.PER_PROMPT, Fixed({NEWER: False, NORM_TYPE: ""}, written=False))
HEADER_2_3 = _header(FeatureNorm.PER_TOKEN, Fixed(NEWER_FLAGS), Key((), NORM_TYPE, NORM, PER_TOKEN))


def _stream(stream: str) -> tuple[Entry, ...]:
    return (
        Key(f"{stream}.layers", f"{stream}_connector_num_layers", int, 2),
        Key(f"{stream}.heads", f"{stream}_connector_num_attention_heads", int, 30),
        Key(f"{stream}.head_size", f"{stream}_connector_attention_head_dim", int, 128),
        Key(f"{stream}.registers", f"{stream}_connector_num_learnable_registers", int, 128),
    )


def _model_config(norm: FeatureNorm, *widths: Entry) -> ConfigTable:
    """Return diffusers' table of one generation."""
    is_newer = norm is FeatureNorm.PER_TOKEN
    return ConfigTable(
        config=ConnectorsConfig,
        where="connectors/config.json",
        entries=(
            Repeated("_class_name", lambda config: "LTX2TextConnectors", checked=False),
            Constant("norm", norm),
            Fixed({"per_modality_projections": is_newer, "proj_bias": is_newer}, required=is_newer),
            Constant("tokens", 1024, "must be 1024, diffusers' config cannot express it"),
            *_stream("video"),
            *_stream("audio"),
            *widths,
            Key("text_width", "caption_channels", int, GEMMA_3_12B.width),
            Key("text_states", "text_proj_in_factor", int, GEMMA_3_12B.states),
            Key("gated_attention", "video_gated_attn", bool, False),
            Repeated("audio_gated_attn", "gated_attention", False, ", as video_gated_attn"),
            Key("max_position", "connector_rope_base_seq_len", int, 4096),
            Key("theta", "rope_theta", float, 10_000.0),
            Key("grid", "rope_double_precision", IS_FLOAT64, True),
            Key("rotary", "rope_type", RotaryKind, "interleaved"),
        ),
        unread=("causal_temporal_positioning", "_.*"),
    )


MODEL_CONFIG_2_0 = _model_config(
    FeatureNorm.PER_PROMPT,
    Repeated("video_hidden_dim", "video.width", checked=False),
    Repeated("audio_hidden_dim", "audio.width", checked=False),
)
MODEL_CONFIG_2_3 = _model_config(
    FeatureNorm.PER_TOKEN,
    Repeated("video_hidden_dim", "video.width", 4096),
    Repeated("audio_hidden_dim", "audio.width", 2048),
)


def _is_newer(config: ConnectorsConfig) -> bool:
    return config.norm is FeatureNorm.PER_TOKEN


HEADER = Generations(
    of_source=lambda keys: HEADER_2_3 if keys.get(f"transformer.{NEWER}") else HEADER_2_0,
    of_native=lambda config: HEADER_2_3 if _is_newer(config) else HEADER_2_0,
)
MODEL_CONFIG = Generations(
    of_source=lambda keys: MODEL_CONFIG_2_3 if keys.get("per_modality_projections") else MODEL_CONFIG_2_0,
    of_native=lambda config: MODEL_CONFIG_2_3 if _is_newer(config) else MODEL_CONFIG_2_0,
)

COMPONENT = Component(
    name="connectors",
    config=ConnectorsConfig,
    abstract=lambda config: abstract(connectors_spec(config)),
    namings={
        LTX2: Naming(
            prefixes=(PROJECTION, *(f"{NETWORK}{stream}_embeddings_connector." for stream in STREAMS)),
            rules=original_rules,
            table=HEADER,
        ),
        DIFFUSERS: Naming(rules=diffusers_rules, table=MODEL_CONFIG, folder="connectors"),
    },
)
