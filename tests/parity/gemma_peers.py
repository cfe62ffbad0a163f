"""Tiny live models of transformers, Gemma 3 and Gemma 4, with random weights, none of them neutral."""

import functools

import numpy as np
import torch
from transformers import Gemma3TextConfig, Gemma3TextModel, Gemma4UnifiedTextConfig, Gemma4UnifiedTextModel

WIDTH, VOCABULARY, WINDOW = 24, 40, 4
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "sliding_window": WINDOW,
}
KINDS = ["sliding_attention", "full_attention"]
GEMMA_3 = SIZES | {
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 12,
    "layer_types": [*KINDS, "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
GEMMA_4 = SIZES | {
    "num_hidden_layers": 5,
    "layer_types": [*KINDS, "sliding_attention", *KINDS],
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}


@functools.cache
def build_gemma(generation: int = 3) -> Gemma3TextModel | Gemma4UnifiedTextModel:
    """Build the model; thetas are small, so that every rotary frequency counts within a few tokens."""
    options = {"attn_implementation": "eager"}
    if generation == 3:
        return fill(Gemma3TextModel(Gemma3TextConfig(**GEMMA_3, **options)))
    return fill(Gemma4UnifiedTextModel(Gemma4UnifiedTextConfig(**GEMMA_4, **options)))


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Draw every tensor that a file has, the numbers that scale Gemma 4's layers among them."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        size = 0.5 if value.ndim == 1 else 1.0 if "embed" in name else value.shape[-1] ** -0.5
        value.copy_(torch.randn(value.shape, generator=generator) * size)
    return model.eval()


def get_weights(generation: int = 3) -> dict[str, np.ndarray]:
    """List the weights under the names of a text model's file."""
    return {f"model.{name}": value.numpy() for name, value in build_gemma(generation).state_dict().items()}


@torch.no_grad()
def run_gemma(ids: np.ndarray, mask: np.ndarray, generation: int = 3) -> np.ndarray:
    """Return all hidden states, [L + 1, B, X, D]."""
    model = build_gemma(generation)
    answer = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True)
    return np.stack([state.numpy() for state in answer.hidden_states])
