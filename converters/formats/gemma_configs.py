"""The config.json of Gemma 3 and Gemma 4 text models as transformers has it, text-only and multimodal.

Configs of this family leave out defaults and have many keys without effect, so an unknown key is no error here. Keys
that would change the numbers are checked. A config of neither generation is refused by its `model_type`.

Source: transformers@5.23.0:models/gemma3/configuration_gemma3.py;
transformers@5.23.0:models/gemma4_unified/configuration_gemma4_unified.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from omniforcing_jax.strict_json import MOST_LAYERS, require
from omniforcing_jax.text.gemma_config import GemmaConfig

from ..config_table import ConfigTable, Generations
from ..keys import ABSENT, Constant, Fixed, Form, Key, Repeated

GEMMA_3_TYPES = ("gemma3", "gemma3_text")
GEMMA_4_TYPES = ("gemma4_unified", "gemma4_unified_text")
SLIDING, GLOBAL = "sliding_attention", "full_attention"
LOCAL_ROPE, GLOBAL_ROPE = f"rope_parameters.{SLIDING}.", f"rope_parameters.{GLOBAL}."


def _read_kinds(kinds: list[Any]) -> tuple[bool, ...]:
    if not kinds or not all(kind in (SLIDING, GLOBAL) for kind in kinds):
        raise ValueError(f"must be a list of {SLIDING} and {GLOBAL}")
    return tuple(kind == GLOBAL for kind in kinds)


def _read_stretch(values: tuple[str, float]) -> float:
    kind, factor = values
    if kind not in ("default", "linear"):
        raise ValueError(f"rope_type={kind!r}: must be 'default' or 'linear'")
    return factor if kind == "linear" else 1.0


def _read_rotated(values: tuple[str, float, float]) -> tuple[float, float]:
    kind, rotated, factor = values
    if kind != "proportional" and (kind, rotated, factor) != ("default", 1.0, 1.0):
        raise ValueError(f"rope_type={kind!r}: must be 'proportional', or 'default' without a factor")
    return rotated, factor


def _refuse_all_sight(values: tuple[Any]) -> tuple[()]:
    if values[0] not in (None, "vision"):
        raise ValueError(f"use_bidirectional_attention={values[0]!r}: must be 'vision', which is not about text")
    return ()


def _refuse_stretch(values: tuple[str, float]) -> tuple[()]:
    if (stretch := _read_stretch(values)) != 1:
        raise ValueError(f"rope_parameters.{SLIDING}.factor={stretch}: must be 1")
    return ()


KINDS = Form(
    kind=list,
    to_native=_read_kinds,
    to_source=lambda is_global: [GLOBAL if each else SLIDING for each in is_global],
)
NUMBER = Form(kind=float, to_source=lambda value: int(value) if value.is_integer() else value)
STRETCH = Form(  # of `rope_type` and `factor`
    kind=(str, float),
    to_native=_read_stretch,
    to_source=lambda stretch: ("default", ABSENT) if stretch == 1 else ("linear", stretch),
)
ROTATED = Form(  # of `rope_type`, `partial_rotary_factor` and `factor`
    kind=(str, float, float),
    to_native=_read_rotated,
    to_source=lambda values: ("proportional", values[0], ABSENT if values[1] == 1 else values[1]),
)
SIGHT = Form(kind=(object,), to_native=_refuse_all_sight, to_source=lambda _: (ABSENT,))
NO_STRETCH = Form(kind=(str, float), to_native=_refuse_stretch, to_source=lambda _: ("default", ABSENT))

GEMMA_3 = (
    Repeated("model_type", lambda config: "gemma3_text", checked=False),
    Fixed({"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "rms_norm_eps": 1e-6}),
    Fixed({"use_bidirectional_attention": False}),
    Fixed({"attn_logit_softcapping": None}, written=False),
    Fixed({f"{rope}partial_rotary_factor": 1.0 for rope in (LOCAL_ROPE, GLOBAL_ROPE)}, written=False),
    Key("vocabulary", "vocab_size", int, 262_208),
    Key("width", "hidden_size", int, 2304),
    Key("mlp_width", "intermediate_size", int, 9216),
    Repeated("num_hidden_layers", "layers", 26, ", the length of layer_types"),
    Key("heads", "num_attention_heads", int, 8),
    Key("kv_heads", "num_key_value_heads", int, 4),
    Key("head_size", "head_dim", int, 256),
    Key("query_scale", "query_pre_attn_scalar", NUMBER, 256.0),
    *(
        Constant(native, value, f"must be {value}, Gemma 3's config cannot express another value")
        for native, value in (
            ("global_rotated", 1.0),
            ("global_heads", None),
            ("norm_offset", 1.0),
            ("value_norm", False),
            ("layer_scale", False),
        )
    ),
    Key("window", "sliding_window", int, 4096),
    Key("is_global", "layer_types", KINDS),
    Key((), (f"{LOCAL_ROPE}rope_type", f"{LOCAL_ROPE}factor"), NO_STRETCH, ("default", 1.0)),
    Key("local_theta", f"{LOCAL_ROPE}rope_theta", float, 10_000.0, older="rope_local_base_freq"),
    Key("global_stretch", (f"{GLOBAL_ROPE}rope_type", f"{GLOBAL_ROPE}factor"), STRETCH, ("default", 1.0)),
    Key("global_theta", f"{GLOBAL_ROPE}rope_theta", float, 1_000_000.0, older="rope_theta"),
)

GEMMA_4 = (
    Repeated("model_type", lambda config: "gemma4_unified_text", checked=False),
    Fixed({"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "rms_norm_eps": 1e-6}),
    Fixed({"num_kv_shared_layers": 0, "use_double_wide_mlp": False}),
    Fixed({"hidden_size_per_layer_input": 0, "enable_moe_block": False}, written=False),
    Fixed({f"{LOCAL_ROPE}partial_rotary_factor": 1.0}, written=False),
    *(
        Constant(native, value, f"must be {value}, Gemma 4's config cannot express another value")
        for native, value in (("query_scale", 1.0), ("norm_offset", 0.0), ("value_norm", True), ("layer_scale", True))
    ),
    Key((), ("use_bidirectional_attention",), SIGHT, (None,)),
    Key("vocabulary", "vocab_size", int, 262_144),
    Key("width", "hidden_size", int, 2304),
    Key("mlp_width", "intermediate_size", int, 9216),
    Repeated("num_hidden_layers", "layers", 30, ", the length of layer_types"),
    Key("heads", "num_attention_heads", int, 8),
    Key("kv_heads", "num_key_value_heads", int, 4),
    Key("head_size", "head_dim", int, 256),
    Key("global_heads.kv_heads", "num_global_key_value_heads", int),
    Key("global_heads.head_size", "global_head_dim", int, 512),
    Key("global_heads.keys_are_values", "attention_k_eq_v", bool, False),
    Key("window", "sliding_window", int, 1024),
    Key("is_global", "layer_types", KINDS),
    Key((), (f"{LOCAL_ROPE}rope_type", f"{LOCAL_ROPE}factor"), NO_STRETCH, ("default", 1.0)),
    Key("local_theta", f"{LOCAL_ROPE}rope_theta", float, 10_000.0),
    Key(
        ("global_rotated", "global_stretch"),
        (f"{GLOBAL_ROPE}rope_type", f"{GLOBAL_ROPE}partial_rotary_factor", f"{GLOBAL_ROPE}factor"),
        ROTATED,
        ("default", 1.0, 1.0),
    ),
    Key("global_theta", f"{GLOBAL_ROPE}rope_theta", float, 1_000_000.0),
)
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}  # where no rope is given


def _text_of(values: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
    """Return the text model's config; the first kind of model is multimodal. Values of null are left out."""
    kind = values.get("model_type")
    require(kind in kinds, "model_type", kind, f"must be {' or '.join(map(repr, kinds))}")
    text = values.get("text_config") if kind == kinds[0] else values
    require(isinstance(text, Mapping), "config.json.text_config", text, "must be an object")
    return {key: value for key, value in dict(text or {}).items() if value is not None}


def _add_kinds(values: dict[str, Any], layers: int) -> None:
    """Add the kind of each layer where there is a pattern instead; `layers` is the default of their number."""
    layers = values.get("num_hidden_layers", layers)
    pattern = values.get("sliding_window_pattern", values.get("_sliding_window_pattern", 6))
    for key, number in (("num_hidden_layers", layers), ("sliding_window_pattern", pattern)):
        fits = type(number) is int and 1 <= number <= MOST_LAYERS
        require(fits, key, number, f"must be a whole number from 1 to {MOST_LAYERS}")
    values.setdefault("layer_types", [SLIDING if (i + 1) % pattern else GLOBAL for i in range(layers)])


def open_gemma_3(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's config in today's form, of a text-only or multimodal Gemma 3 of any version.

    Older configs have `rope_scaling` of global layers only, and a pattern instead of the kind of each layer.
    """
    values = _text_of(values, *GEMMA_3_TYPES)
    scaling = values.pop("rope_scaling", {})
    require(isinstance(scaling, Mapping), "rope_scaling", scaling, "must be an object")
    if "type" in scaling:
        scaling = {"rope_type": scaling["type"], **{key: each for key, each in scaling.items() if key != "type"}}
    parameters = values.get("rope_parameters") or {GLOBAL: scaling}
    require(isinstance(parameters, Mapping), "rope_parameters", parameters, "must be an object")
    values["rope_parameters"] = {kind: each for kind, each in parameters.items() if each}
    _add_kinds(values, 26)
    return values


def open_gemma_4(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's config as transformers first wrote it, of a text-only or multimodal Gemma 4.

    Newer configs list the heads of every global layer under `per_layer_config`.
    """
    values = _text_of(values, *GEMMA_4_TYPES)
    _add_kinds(values, 30)
    values.setdefault("rope_parameters", {GLOBAL: PROPORTIONAL})
    kinds, own = values["layer_types"], values.pop("per_layer_config", None)
    ends_global = isinstance(kinds, list) and kinds[-1:] == [GLOBAL]
    require(ends_global, "layer_types", kinds, f"must be a list that ends with {GLOBAL}")
    if own is not None:
        values |= _read_own_heads(own, [i for i, kind in enumerate(kinds) if kind == GLOBAL])
    elif not values.get("attention_k_eq_v", False):
        values.pop("num_global_key_value_heads", None)
    values.setdefault("num_global_key_value_heads", values.get("num_key_value_heads", 4))
    return values


def _read_own_heads(own: Any, layers: list[int]) -> dict[str, Any]:
    """Return the heads of global layers, of a `per_layer_config` that says the same of each of them and of no other."""
    rule = "must have head_dim, and num_key_value_heads where they differ, the same for each global layer and no other"
    heads = list(own.values()) if isinstance(own, Mapping) else []
    fits = bool(heads) and {str(key).lstrip("0") or "0" for key in own} == {str(i) for i in layers}
    fits = fits and all(isinstance(each, Mapping) and each == heads[0] for each in heads)
    fits = fits and {"head_dim"} <= set(heads[0]) <= {"head_dim", "num_key_value_heads"}
    require(fits, "per_layer_config", own, rule)
    names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    return {names[key]: value for key, value in heads[0].items()}


TEXT_3 = ConfigTable(
    config=GemmaConfig,
    where="config.json",
    entries=GEMMA_3,
    unread=(r"(?!rope_parameters\.).*",),
    open=open_gemma_3,
    wrap=lambda text: {"architectures": ["Gemma3ForCausalLM"], **text},
)
TEXT_4 = dataclasses.replace(
    TEXT_3,
    entries=GEMMA_4,
    open=open_gemma_4,
    wrap=lambda text: {"architectures": ["Gemma4UnifiedForCausalLM"], **text},
)


def _with_parts(table: ConfigTable, architecture: str, model_type: str) -> ConfigTable:
    """Return the table of a multimodal model; its config is written without the parts that are not the text model."""
    start = {"architectures": [architecture], "model_type": model_type}
    return dataclasses.replace(table, wrap=lambda text: {**start, "text_config": text})


def _generations(older: ConfigTable, newer: ConfigTable) -> Generations:
    return Generations(
        of_source=lambda keys: newer if str(keys.get("model_type")).startswith("gemma4") else older,
        of_native=lambda config: newer if config.is_gemma_4 else older,
    )


TEXT_CONFIG = _generations(TEXT_3, TEXT_4)
MULTIMODAL_CONFIG = _generations(
    _with_parts(TEXT_3, "Gemma3ForConditionalGeneration", GEMMA_3_TYPES[0]),
    _with_parts(TEXT_4, "Gemma4UnifiedForConditionalGeneration", GEMMA_4_TYPES[0]),
)
