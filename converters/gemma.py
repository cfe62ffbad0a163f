"""Gemma 3 text models under the names of Hugging Face.

Three prefixes are about: `language_model.model.` as the multimodal models were published, `model.language_model.` as
transformers writes them now, `model.` for text-only models. Source: specs/ltx2.md 8.1, 9.2.
"""

from collections.abc import Iterator

from converters.rules import Rule, check_rules

PUBLISHED, CURRENT, TEXT_ONLY = "language_model.model.", "model.language_model.", "model."
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


def rules(prefix: str) -> tuple[Rule, ...]:
    """List the table for keys that begin with a prefix."""
    return check_rules(_rules(prefix))


def _rules(prefix: str) -> Iterator[Rule]:
    yield Rule("embedding", f"{prefix}embed_tokens.weight")
    yield Rule("norm", f"{prefix}norm.weight")
    layer = f"{prefix}layers.{{i}}."
    for ours, theirs in LINEARS.items():
        yield Rule(f"layers/{ours}/w", f"{layer}{theirs}.weight")
    for ours, theirs in NORMS.items():
        yield Rule(f"layers/{ours}", f"{layer}{theirs}.weight")
