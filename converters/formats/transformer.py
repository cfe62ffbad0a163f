"""The dual-stream transformer: its keys and config in LTX-2's files (2.0 to 2.5), OmniForcing's and diffusers'.

LTX-2's and OmniForcing's keys are the same. An LTX-2 header leaves out what ltx-core's classes have as defaults
(interleaved pairs, a float32 grid, gate multiplier 1). No config says whose sigma drives the cross-modal modulation:
ltx-core 1.0.0 and diffusers' pipeline cross it. OmniForcing has no config; see original_keys.py.

Source: ltx-core 1.0.0 and 1.2.0, ltx_core.model.transformer.model_configurator; diffusers 0.42.1,
LTX2VideoTransformer3DModel.
"""

import re
from collections.abc import Iterator
from typing import Any

from omniforcing_jax.config import CrossTimestep, GridPrecision, ModelConfig, RotaryKind
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import require

from ..component import DIFFUSERS, LTX2, Component, Naming
from ..config_table import ConfigTable
from ..keys import ABSENT, Constant, Entry, Fixed, Form, Key, Repeated, choice
from ..rules import Rule, check_rules
from ..section import Section

PREFIX = "model.diffusion_model."
CAMERA = "ucpe_"  # begins the names of camera attention, in a layer and in diffusers' config
CLASSES = ("LTX2VideoTransformer3DModel", "EchoWMTransformer3DModel")  # without and with camera attention


def _linear(native: str, source: str) -> Iterator[Rule]:
    yield Rule(f"{native}/w", f"{source}.weight")
    yield Rule(f"{native}/b", f"{source}.bias")


def _time(native: str, source: str) -> Iterator[Rule]:
    yield from _linear(f"{native}/up", f"{source}.emb.timestep_embedder.linear_1")
    yield from _linear(f"{native}/down", f"{source}.emb.timestep_embedder.linear_2")
    yield from _linear(f"{native}/rows", f"{source}.linear")


def _attention(native: str, source: str) -> Iterator[Rule]:
    for name in ("q", "k", "v"):
        yield from _linear(f"{native}/{name}", f"{source}.to_{name}")
    yield from _linear(f"{native}/o", f"{source}.to_out.0")
    yield from _linear(f"{native}/gate", f"{source}.to_gate_logits")
    yield Rule(f"{native}/q_norm", f"{source}.q_norm.weight")
    yield Rule(f"{native}/k_norm", f"{source}.k_norm.weight")


def _ends(stream: str, mark: str, gate: str) -> Iterator[Rule]:
    """One stream's weights before and after the layers; `mark` begins its keys."""
    yield from _linear(f"{stream}/patchify", f"{mark}patchify_proj")
    yield from _linear(f"{stream}/caption/up", f"{mark}caption_projection.linear_1")
    yield from _linear(f"{stream}/caption/down", f"{mark}caption_projection.linear_2")
    yield from _time(f"{stream}/time", f"{mark}adaln_single")
    yield from _time(f"{stream}/cross_time", f"av_ca_{stream}_scale_shift_adaln_single")
    yield from _time(f"{stream}/cross_gate_time", f"av_ca_{gate}_gate_adaln_single")
    yield from _time(f"{stream}/prompt_time", f"{mark}prompt_adaln_single")
    yield Rule(f"{stream}/head_table", f"{mark}scale_shift_table")
    yield from _linear(f"{stream}/head", f"{mark}proj_out")


def _layers(stream: str, mark: str) -> Iterator[Rule]:
    """One stream's weights in the layers."""
    native, source = f"layers/{stream}", "transformer_blocks.{i}."
    yield from _attention(f"{native}/self_attn", f"{source}{mark}attn1")
    yield from _attention(f"{native}/text_attn", f"{source}{mark}attn2")
    yield from _linear(f"{native}/mlp/up", f"{source}{mark}ff.net.0.proj")
    yield from _linear(f"{native}/mlp/down", f"{source}{mark}ff.net.2")
    yield Rule(f"{native}/table", f"{source}{mark}scale_shift_table")
    yield Rule(f"{native}/text_table", f"{source}{mark}prompt_scale_shift_table")
    yield Rule(f"layers/cross_table_{stream}", f"{source}scale_shift_table_a2v_ca_{stream}")


def _rules() -> Iterator[Rule]:
    for stream, mark, gate in (("video", "", "a2v"), ("audio", "audio_", "v2a")):
        yield from _ends(stream, mark, gate)
        yield from _layers(stream, mark)
    yield from _attention("layers/a2v", "transformer_blocks.{i}.audio_to_video_attn")
    yield from _attention("layers/v2a", "transformer_blocks.{i}.video_to_audio_attn")
    yield Rule("sinks", "audio_sink_tokens")
    yield Rule("keyframe", "keyframes_abs_pos_embedding")
    for name in ("q", "k", "v"):
        yield Rule(f"layers/camera/{name}/w", f"transformer_blocks.{{i}}.{CAMERA}{name}_proj.weight")
    yield from _linear("layers/camera/o", f"transformer_blocks.{{i}}.{CAMERA}out_proj")


# Original keys to diffusers', first match wins. Each pattern is anchored, because some names contain others.
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


def _rename(original: str) -> str:
    """Spell an original key, without prefix, as diffusers does."""
    for pattern, other in RENAMES:
        name, count = re.subn(pattern, other, original)
        if count:
            return name
    return original


ORIGINAL_RULES = check_rules(Rule(rule.native, PREFIX + rule.source, rule.axes) for rule in _rules())
DIFFUSERS_RULES = check_rules(Rule(rule.native, _rename(rule.source), rule.axes) for rule in _rules())

LTX2_FIXED = (  # what ltx-core's loader checks, and what this network takes for granted
    Fixed({"activation_fn": "gelu-approximate", "dropout": 0.0, "share_ff": False, "double_self_attention": False}),
    Fixed({"qk_norm": "rms_norm", "standardization_norm": "rms_norm", "norm_elementwise_affine": False}),
    Fixed({"norm_eps": 1e-6, "num_vector_embeds": None, "num_embeds_ada_norm": 1000, "use_linear_projection": False}),
    Fixed({"attention_bias": True, "upcast_attention": False, "only_cross_attention": False}),
    Fixed({"cross_attention_norm": True, "use_audio_video_cross_attention": True, "av_cross_ada_norm": True}),
    Fixed({"positional_embedding_type": "rope", "use_middle_indices_grid": True, "timestep_scale_multiplier": 1000}),
)
DIFFUSERS_FIXED = (
    Fixed({"patch_size": 1, "patch_size_t": 1, "audio_patch_size": 1, "audio_patch_size_t": 1, "causal_offset": 1}),
    Fixed({"audio_scale_factor": 4, "audio_sampling_rate": 16000, "audio_hop_length": 160}),
    Fixed({"activation_fn": "gelu-approximate", "attention_bias": True, "attention_out_bias": True}),
    Fixed({"qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False, "norm_eps": 1e-6}),
    Fixed({"timestep_scale_multiplier": 1000}),
)
LATER = (  # keys of LTX-2.5, which both formats call the same and older files lack
    Key("video.mlp_bias", "ff_bias", bool, True, sparse=True),
    Key("audio.mlp_bias", "audio_ff_bias", bool, True, sparse=True),
    Key("prompt_time", "use_prompt_adaln_single", bool, True, sparse=True),
    Key("keyframe_embedding", "use_keyframes_abs_pos_embedding", bool, False, sparse=True),
)
CONNECTORS = re.compile(r"(audio_)?connector_\w+")  # keys of another component in the same section


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _read_sizes(values: list[Any]) -> tuple[float, float]:
    if len(values) != 3 or any(type(value) not in (int, float) for value in values):
        raise ValueError("must be [seconds, rows, columns]")
    if values[1] != values[2]:
        raise ValueError("rows and columns must be equal")
    return float(values[0]), float(values[1])


def _write_whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError("diffusers' transformer needs a whole number")
    return int(value)


def _read_scales(values: list[Any]) -> int:
    if len(values) != 3 or values[0] != 8 or values[1] != values[2]:
        raise ValueError("must be [8, s, s]")
    return values[1]


SIZES = Form(
    kind=list, to_native=_read_sizes, to_source=lambda x: [_whole(x[0]), _whole(x[1]), _whole(x[1])]
)  # seconds, rows and columns, of which the last two are equal
SCALES = Form(kind=list, to_native=_read_scales, to_source=lambda scale: [8, scale, scale])
WHOLE = Form(kind=float, to_source=_write_whole)
IS_FLOAT64 = choice({True: GridPrecision.FLOAT64, False: GridPrecision.FLOAT32})
UNLESS_PROJECTED = Form(  # channels of text that the network projects itself; None where the connectors did
    kind=(int, bool),
    to_native=lambda values: None if values[1] else values[0],
    # ltx-core takes the flag, even if it is false, for a sign of LTX-2.3's connectors.
    to_source=lambda channels: (ABSENT, True) if channels is None else (channels, ABSENT),
)
IF_PROJECTS = Form(
    kind=(int, bool),
    to_native=lambda values: values[0] if values[1] else None,
    to_source=lambda channels: (3840 if channels is None else channels, channels is not None),
)


def _stream(native: str, mark: str) -> tuple[Entry, ...]:
    """Sizes of one stream, which both formats call the same."""
    return (
        Key(f"{native}.latent_channels", f"{mark}in_channels", int, 128),
        Repeated(f"{mark}out_channels", f"{native}.latent_channels", rule=f", as {mark}in_channels"),
        Key(f"{native}.heads", f"{mark}num_attention_heads", int, 32),
        Key(f"{native}.head_size", f"{mark}attention_head_dim", int, 64 if mark else 128),
    )


class CameraKeys(Entry):
    """The keys of camera attention in diffusers' config, which are there only if the network has it."""

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the sizes."""
        if f"{CAMERA}attention_dim" not in section:
            return
        width, heads = (section.take(f"{CAMERA}{name}", int) for name in ("attention_dim", "num_attention_heads"))
        fits = heads > 0 and width % heads == 0
        require(
            fits, f"{section.where}.{CAMERA}num_attention_heads", heads, f"must divide {CAMERA}attention_dim={width}"
        )
        theta, scale = (
            section.take(f"{CAMERA}freq_{name}", float, value) for name, value in (("base", 1e2), ("scale", 1.0))
        )
        native["camera"] = {"heads": heads, "head_size": width // heads, "theta": theta}
        require(scale == 1, f"{section.where}.{CAMERA}freq_scale", scale, "must be 1, nothing else is supported")

    def check(self, section: Section, config: Any) -> None:
        """Take the layers, which must be all of them."""
        layers = list(range(config.layers))
        found = section.take(f"{CAMERA}block_indices", list, layers)
        require(found == layers, f"{section.where}.{CAMERA}block_indices", found, "must be all layers")

    def write(self, config: Any) -> dict[str, Any]:
        """Return the sizes of a network that has it."""
        camera = config.camera
        if camera is None:
            return {}
        values = {
            "block_indices": list(range(config.layers)),
            "attention_dim": camera.heads * camera.head_size,
            "num_attention_heads": camera.heads,
            "freq_base": camera.theta,
            "freq_scale": 1.0,
        }
        return {f"{CAMERA}{name}": value for name, value in values.items()}


def _refusals(where: str) -> tuple[Entry, ...]:
    """Settings that neither format has a key for."""
    return (
        Constant("sinks", 0, f"{where} cannot express sink tokens"),
        Constant("log_ratio", False, f"{where} cannot express log-ratio scaling"),
        Constant("cross_timestep", CrossTimestep.CROSS),
    )


HEADER = ConfigTable(
    config=ModelConfig,
    where="header config, transformer",
    section="transformer",
    entries=(
        *_refusals("LTX-2's header"),
        Repeated("_class_name", lambda config: "AVTransformer3DModel", checked=False),
        *LTX2_FIXED,
        *LATER,
        *_stream("video", ""),
        *_stream("audio", "audio_"),
        Repeated("cross_attention_dim", "video.width", checked=False),
        Repeated("audio_cross_attention_dim", "audio.width", checked=False),
        Key("layers", "num_layers", int, 48),
        Key("rotary.theta", "positional_embedding_theta", float, 1e4),
        Key(("rotary.max_seconds", "rotary.max_pixels"), "positional_embedding_max_pos", SIZES, [20, 2048, 2048]),
        Repeated("audio_positional_embedding_max_pos", lambda config: [_whole(config.rotary.max_seconds)], [20]),
        Key("rotary.kind", "rope_type", RotaryKind, "interleaved"),
        Key("rotary.grid", "frequencies_precision", GridPrecision, "float32"),
        Key("gate_multiplier", "av_ca_timestep_scale_multiplier", float, 1.0),
        Key("caption_channels", ("caption_channels", "caption_proj_before_connector"), UNLESS_PROJECTED, (3840, False)),
        Key("gated_attention", "apply_gated_attention", bool, False, sparse=True),
        Key("text_adaln", "cross_attention_adaln", bool, False, sparse=True),
    ),
    unread=(
        *("norm_num_groups", "attention_type", "causal_temporal_positioning"),
        *("use_embeddings_connector", "connector_norm_output", "text_encoder_norm_type", CONNECTORS.pattern),
        *("caption_proj_input_norm", "caption_projection_first_linear", "caption_projection_second_linear"),
    ),
)

MODEL_CONFIG = ConfigTable(
    config=ModelConfig,
    where="transformer/config.json",
    entries=(
        *_refusals("diffusers' transformer"),
        Repeated("_class_name", lambda config: CLASSES[config.camera is not None], checked=False),
        CameraKeys(),
        *DIFFUSERS_FIXED,
        *LATER,
        *_stream("video", ""),
        *_stream("audio", "audio_"),
        Repeated("cross_attention_dim", "video.width"),
        Repeated("audio_cross_attention_dim", "audio.width"),
        Key("layers", "num_layers", int, 48),
        Key("spatial_compression", "vae_scale_factors", SCALES, [8, 32, 32]),
        Key("rotary.theta", "rope_theta", float, 1e4),
        Key("rotary.max_seconds", "pos_embed_max_pos", WHOLE, 20.0),
        Repeated(
            "audio_pos_embed_max_pos", lambda config: int(config.rotary.max_seconds), 20, ", as pos_embed_max_pos"
        ),
        Key("rotary.max_pixels", "base_height", WHOLE, 2048.0),
        Repeated("base_width", lambda config: int(config.rotary.max_pixels), 2048),
        Key("rotary.kind", "rope_type", RotaryKind, "interleaved"),
        Key("rotary.grid", "rope_double_precision", IS_FLOAT64, True),
        Key("gate_multiplier", "cross_attn_timestep_scale_multiplier", WHOLE, 1000.0),
        Key("caption_channels", ("caption_channels", "use_prompt_embeddings"), IF_PROJECTS, (3840, True)),
        Key("gated_attention", "gated_attn", bool, False),
        Repeated("audio_gated_attn", "gated_attention", False, ", as gated_attn"),
        Key("text_adaln", "cross_attn_mod", bool, False),
        Repeated("audio_cross_attn_mod", "text_adaln", False, ", as cross_attn_mod"),
        # Values pass through under guidance, as LTX-2.3's published config has it.
        Repeated("perturbed_attn", lambda config: config.text_adaln or config.gated_attention, checked=False),
    ),
    unread=("_.*", "ucpe_(patches|image)_.*"),
)

COMPONENT = Component(
    name="transformer",
    config=ModelConfig,
    abstract=lambda config: abstract(transformer_spec(config)),
    namings={
        LTX2: Naming(prefixes=(PREFIX,), rules=lambda config: ORIGINAL_RULES, table=HEADER),
        DIFFUSERS: Naming(rules=lambda config: DIFFUSERS_RULES, table=MODEL_CONFIG, folder="transformer"),
    },
)
