"""Gemma 3 and Gemma 4 text models: their keys, as transformers and LTX-2.5's own file have them.

Each of four prefixes is a naming. `find_naming` tells those of transformers apart: `language_model.model.` of Gemma 3's
multimodal models as published, `model.language_model.` as transformers names them now, `model.` of text-only models.
LTX-2.5's file has `model.`, too, beside ComfyUI's names of the other parts. These parts pass through.

Source: transformers 5.23, Gemma3TextConfig and Gemma4UnifiedTextConfig; ltx-core 1.2.0,
ltx_core.text_encoders.gemma.gemma_assets.
"""

from collections.abc import Iterable, Iterator

from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.text.gemma import gemma_spec
from omniforcing_jax.text.gemma_config import GemmaConfig

from ..component import HUGGING_FACE, LTX2_TEXT, Component, Naming
from ..rules import Rule
from .gemma_configs import MULTIMODAL_CONFIG, TEXT_CONFIG

CURRENT, TEXT_ONLY = f"{HUGGING_FACE}/current", f"{HUGGING_FACE}/text_only"
TRANSFORMERS = {HUGGING_FACE: "language_model.model.", CURRENT: "model.language_model.", TEXT_ONLY: "model."}
PREFIXES = TRANSFORMERS | {LTX2_TEXT: TRANSFORMERS[TEXT_ONLY]}
OF_GEMMA_4 = ("model.vision_embedder.*", "model.embed_vision.*", "model.embed_audio.*")
PASSED = {
    HUGGING_FACE: ("vision_tower.*", "multi_modal_projector.*", "language_model.lm_head.weight"),
    CURRENT: ("model.vision_tower.*", "model.multi_modal_projector.*", "lm_head.weight", *OF_GEMMA_4),
    TEXT_ONLY: ("lm_head.weight",),
    LTX2_TEXT: ("vision_model.*", "multi_modal_projector.*", "audio_projector.*", "lm_head.weight", *OF_GEMMA_4),
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
    for naming, prefix in TRANSFORMERS.items():
        if f"{prefix}embed_tokens.weight" in tables:
            return naming
    expected = ", ".join(f"{prefix}embed_tokens.weight" for prefix in TRANSFORMERS.values())
    raise ValueError(f"{where}: no text model of Gemma 3 or 4, expected one of {expected}")


def _rules(prefix: str, config: GemmaConfig) -> Iterator[Rule]:
    yield Rule("embedding", f"{prefix}embed_tokens.weight")
    yield Rule("norm", f"{prefix}norm.weight")
    layer = f"{prefix}layers.{{i}}."
    sources = {f"{native}/w": f"{source}.weight" for native, source in LINEARS.items()}
    sources |= {native: f"{source}.weight" for native, source in NORMS.items()} | {"scale": "layer_scalar"}
    for stack, numbers in zip(("layers", "global_layers"), config.stacks, strict=False):
        for native, source in sources.items():
            yield Rule(f"{stack}/{native}", f"{layer}{source}", numbers=numbers)


def _naming(name: str) -> Naming:
    return Naming(
        rules=lambda config: tuple(_rules(PREFIXES[name], config)),
        table=TEXT_CONFIG if name == TEXT_ONLY else MULTIMODAL_CONFIG,
        passed=PASSED[name],
        folder="" if name == LTX2_TEXT else "text_encoder",
    )


COMPONENT = Component(
    name="text",
    config=GemmaConfig,
    abstract=lambda config: abstract(gemma_spec(config)),
    namings={name: _naming(name) for name in PREFIXES},
)
