"""Gemma 3 text models as transformers keeps them: names, and config.json of text-only and of multimodal models.

Three prefixes are about, each a naming of its own, and `find_naming` tells them apart: `language_model.model.` as the
multimodal models were published, `model.language_model.` as transformers names them now, `model.` of text-only models.
The vision tower goes through untouched. Configs of this family leave out what transformers' class supposes and carry
much that has no effect, so unknown keys are no error here; what would change the numbers is checked.
Source: specs/ltx2.md 8.1, 9.2; transformers 5.23, Gemma3TextConfig.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from converters.component import HUGGING_FACE, Component, Header, Naming, Section
from converters.rules import Rule
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.gemma import GemmaConfig, gemma_spec

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
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "use_bidirectional_attention": False,
}
SLIDING, GLOBAL = "sliding_attention", "full_attention"


def find_naming(keys: Iterable[str], where: str = "checkpoint") -> str:
    """Tell which of the namings a file's keys have.

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
    for ours, theirs in LINEARS.items():
        yield Rule(f"layers/{ours}/w", f"{layer}{theirs}.weight")
    for ours, theirs in NORMS.items():
        yield Rule(f"layers/{ours}", f"{layer}{theirs}.weight")


def read_config(values: Header) -> GemmaConfig:
    """Read config.json of a Gemma 3 model, multimodal or text-only, of any version of transformers.

    Raises:
        ValueError: It is of another model, or a value is of the wrong kind or not supported; names it.
    """
    where = "config.json"
    kind = values.get("model_type")
    require(kind in ("gemma3", "gemma3_text"), "model_type", kind, "must be 'gemma3' or 'gemma3_text'")
    if kind == "gemma3":
        text = values.get("text_config")
        if not isinstance(text, Mapping):
            raise ValueError(f"{where}.text_config={text!r}: must be an object")
        where, values = f"{where}, text_config", text
    section = Section({key: value for key, value in values.items() if value is not None}, where)
    section.expect(FIXED)
    require(values.get("attn_logit_softcapping") is None, "attn_logit_softcapping", True, "is not supported")
    local, whole = _rotations(section, where)
    return GemmaConfig(
        vocabulary=section.take("vocab_size", int, 262_208),
        width=section.take("hidden_size", int, 2304),
        mlp_width=section.take("intermediate_size", int, 9216),
        heads=section.take("num_attention_heads", int, 8),
        kv_heads=section.take("num_key_value_heads", int, 4),
        head_size=section.take("head_dim", int, 256),
        query_scale=section.take("query_pre_attn_scalar", float, 256.0),
        window=section.take("sliding_window", int, 4096),
        is_global=_layer_kinds(section),
        local_theta=local[0],
        global_theta=whole[0],
        global_stretch=whole[1],
    )


def _layer_kinds(section: Section) -> tuple[bool, ...]:
    """Read which layers are global: from their list, or from a pattern, as older configs have it."""
    layers = section.take("num_hidden_layers", int, 26)
    pattern = section.take("sliding_window_pattern", int, section.take("_sliding_window_pattern", int, 6))
    kinds = section.take("layer_types", list, [SLIDING if (i + 1) % pattern else GLOBAL for i in range(layers)])
    right = len(kinds) == layers and set(kinds) <= {SLIDING, GLOBAL}
    require(right, "layer_types", kinds, f"must be {layers} of {SLIDING} and {GLOBAL}")
    return tuple(kind == GLOBAL for kind in kinds)


def _rotations(section: Section, where: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Read theta and stretch of sliding and of global layers, in the form of transformers 5 or in the older one."""
    old_scaling = Section(section.take("rope_scaling", dict, {}), f"{where}.rope_scaling")
    given = section.take("rope_parameters", dict, {})
    local = Section(given.get(SLIDING) or {}, f"{where}.rope_parameters.{SLIDING}")
    whole = Section(given.get(GLOBAL) or {}, f"{where}.rope_parameters.{GLOBAL}") if given else old_scaling
    local_theta = local.take("rope_theta", float, section.take("rope_local_base_freq", float, 10_000.0))
    global_theta = whole.take("rope_theta", float, section.take("rope_theta", float, 1_000_000.0))
    local_stretch, global_stretch = _stretch(local), _stretch(whole)
    require(local_stretch == 1, f"{local.where}.factor", local_stretch, "must be 1")
    return (local_theta, local_stretch), (global_theta, global_stretch)


def _stretch(section: Section) -> float:
    kind = section.take("rope_type", str, section.take("type", str, "default"))
    require(kind in ("default", "linear"), f"{section.where}.rope_type", kind, "must be 'default' or 'linear'")
    factor = section.take("factor", float, 1.0)
    section.ignore("partial_rotary_factor") if kind == "default" else None
    section.close()
    return factor if kind == "linear" else 1.0


def write_text_config(config: GemmaConfig) -> dict[str, Any]:
    """Write config.json of a text-only model."""
    scaled = {"rope_type": "linear", "factor": config.global_stretch, "rope_theta": config.global_theta}
    plain = {"rope_type": "default", "rope_theta": config.global_theta}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **FIXED,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "query_pre_attn_scalar": int(config.query_scale) if config.query_scale.is_integer() else config.query_scale,
        "sliding_window": config.window,
        "layer_types": [GLOBAL if is_global else SLIDING for is_global in config.is_global],
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": config.local_theta},
            GLOBAL: plain if config.global_stretch == 1 else scaled,
        },
    }


def write_config(config: GemmaConfig) -> dict[str, Any]:
    """Write config.json of a multimodal model, without its vision part."""
    text = write_text_config(config)
    del text["architectures"]
    return {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}


def _naming(name: str) -> Naming:
    rules = tuple(_rules(PREFIXES[name]))
    return Naming(
        prefixes=("",),
        rules=lambda config: rules,
        read_config=read_config,
        write_config=write_text_config if name == TEXT_ONLY else write_config,
        passed=PASSED[name],
        folder="text_encoder",
    )


COMPONENT = Component(
    name="text",
    abstract=lambda config: abstract(gemma_spec(config)),
    read_own=GemmaConfig.from_dict,
    write_own=GemmaConfig.to_dict,
    namings={name: _naming(name) for name in PREFIXES},
)
