"""Gemma 3 text models: their keys and config.json as transformers has them, text-only and multimodal.

Each of three prefixes is a naming, and `find_naming` tells them apart: `language_model.model.` of the multimodal models
as published, `model.language_model.` as transformers names them now, `model.` of text-only models. The vision tower
passes through. Configs of this family leave out defaults and have many keys without effect, so an unknown key is no
error here; keys that would change the numbers are checked.

Source: transformers 5.23, Gemma3TextConfig.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import MOST_LAYERS, require
from omniforcing_jax.text.gemma import GemmaConfig, gemma_spec

from ..component import HUGGING_FACE, Component, Naming
from ..config_table import ConfigTable
from ..keys import ABSENT, Fixed, Form, Key, Repeated
from ..rules import Rule

CURRENT, TEXT_ONLY = f"{HUGGING_FACE}/current", f"{HUGGING_FACE}/text_only"
PREFIXES = {HUGGING_FACE: "language_model.model.", CURRENT: "model.language_model.", TEXT_ONLY: "model."}
PASSED = {
    HUGGING_FACE: ("vision_tower.*", "multi_modal_projector.*", "language_model.lm_head.weight"),
    CURRENT: ("model.vision_tower.*", "model.multi_modal_projector.*", "lm_head.weight"),
    TEXT_ONLY: ("lm_head.weight",),
}
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {
    "before_attn_norm": "input_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "after_attn_norm": "post_attention_layernorm",
    "before_mlp_norm": "pre_feedforward_layernorm",
    "after_mlp_norm": "post_feedforward_layernorm",
}


def find_naming(keys: Iterable[str], where: str = "checkpoint") -> str:
    """Return the naming that a file's keys have.

    Raises:
        ValueError: They have none of them.
    """
    tables = [key for key in keys if key.endswith("embed_tokens.weight")]
    for naming, prefix in PREFIXES.items():
        if f"{prefix}embed_tokens.weight" in tables:
            return naming
    expected = ", ".join(f"{prefix}embed_tokens.weight" for prefix in PREFIXES.values())
    raise ValueError(f"{where}: no text model of Gemma 3, expected one of {expected}")


def _rules(prefix: str) -> Iterator[Rule]:
    yield Rule("embedding", f"{prefix}embed_tokens.weight")
    yield Rule("norm", f"{prefix}norm.weight")
    layer = f"{prefix}layers.{{i}}."
    for native, source in LINEARS.items():
        yield Rule(f"layers/{native}/w", f"{layer}{source}.weight")
    for native, source in NORMS.items():
        yield Rule(f"layers/{native}", f"{layer}{source}.weight")


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
NO_STRETCH = Form(kind=(str, float), to_native=_refuse_stretch, to_source=lambda _: ("default", ABSENT))

ENTRIES = (
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
    Key("window", "sliding_window", int, 4096),
    Key("is_global", "layer_types", KINDS),
    Key((), (f"{LOCAL_ROPE}rope_type", f"{LOCAL_ROPE}factor"), NO_STRETCH, ("default", 1.0)),
    Key("local_theta", f"{LOCAL_ROPE}rope_theta", float, 10_000.0, older="rope_local_base_freq"),
    Key("global_stretch", (f"{GLOBAL_ROPE}rope_type", f"{GLOBAL_ROPE}factor"), STRETCH, ("default", 1.0)),
    Key("global_theta", f"{GLOBAL_ROPE}rope_theta", float, 1_000_000.0, older="rope_theta"),
)


def open_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's config in today's form, of a text-only or multimodal model and any version.

    Older configs have `rope_scaling` of global layers only, and a pattern instead of the kind of each layer.
    """
    kind = values.get("model_type")
    require(kind in ("gemma3", "gemma3_text"), "model_type", kind, "must be 'gemma3' or 'gemma3_text'")
    text = values.get("text_config") if kind == "gemma3" else values
    require(isinstance(text, Mapping), "config.json.text_config", text, "must be an object")
    values = {key: value for key, value in dict(text or {}).items() if value is not None}
    scaling = values.pop("rope_scaling", {})
    require(isinstance(scaling, Mapping), "rope_scaling", scaling, "must be an object")
    if "type" in scaling:
        scaling = {"rope_type": scaling["type"], **{key: each for key, each in scaling.items() if key != "type"}}
    parameters = values.get("rope_parameters") or {GLOBAL: scaling}
    require(isinstance(parameters, Mapping), "rope_parameters", parameters, "must be an object")
    values["rope_parameters"] = {kind: each for kind, each in parameters.items() if each}
    layers = values.get("num_hidden_layers", 26)
    pattern = values.get("sliding_window_pattern", values.get("_sliding_window_pattern", 6))
    for key, number in (("num_hidden_layers", layers), ("sliding_window_pattern", pattern)):
        fits = type(number) is int and 1 <= number <= MOST_LAYERS
        require(fits, key, number, f"must be a whole number from 1 to {MOST_LAYERS}")
    values.setdefault("layer_types", [SLIDING if (i + 1) % pattern else GLOBAL for i in range(layers)])
    return values


TEXT_CONFIG = ConfigTable(
    config=GemmaConfig,
    where="config.json",
    entries=ENTRIES,
    unread=(r"(?!rope_parameters\.).*",),
    open=open_config,
    wrap=lambda text: {"architectures": ["Gemma3ForCausalLM"], **text},
)
MULTIMODAL_CONFIG = dataclasses.replace(  # it has no vision part
    TEXT_CONFIG,
    wrap=lambda text: {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
    },
)


def _naming(name: str) -> Naming:
    rules = tuple(_rules(PREFIXES[name]))
    return Naming(
        rules=lambda config: rules,
        table=TEXT_CONFIG if name == TEXT_ONLY else MULTIMODAL_CONFIG,
        passed=PASSED[name],
        folder="text_encoder",
    )


COMPONENT = Component(
    name="text",
    config=GemmaConfig,
    abstract=lambda config: abstract(gemma_spec(config)),
    namings={name: _naming(name) for name in PREFIXES},
)
