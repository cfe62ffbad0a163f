"""A tiny live Gemma 3 of transformers with random weights, none of them neutral."""

import functools

import numpy as np
import torch
from transformers import Gemma3TextConfig, Gemma3TextModel

LAYERS, WIDTH, VOCABULARY, WINDOW = 3, 24, 40, 4  # sliding, global, sliding
CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}


@functools.cache
def build_gemma() -> Gemma3TextModel:
    """Build the model; thetas are small, so that every rotary frequency counts within a few tokens."""
    model = Gemma3TextModel(Gemma3TextConfig(**CONFIG, attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            size = 0.5 if value.ndim == 1 else 1.0 if "embed" in name else value.shape[-1] ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * size)
    return model


def get_weights() -> dict[str, np.ndarray]:
    """List the weights under the names of a text model's file."""
    return {f"model.{name}": value.numpy() for name, value in build_gemma().state_dict().items()}


@torch.no_grad()
def run_gemma(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return all hidden states, [L + 1, B, X, D]."""
    model = build_gemma()
    answer = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True)
    return np.stack([state.numpy() for state in answer.hidden_states])
