"""From a prompt to contexts: published folders, converted and read here, against transformers and diffusers."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from tiny_text import VISION, build_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from converters.cli import main as convert
from omniforcing_jax.cli.main import main
from omniforcing_jax.text.store import open_store

PROMPTS = ("a red ball", "a blue ball and a red ball, über all", "")
TOKENS, WIDTH, HEADS = 1024, 24, 4
GEMMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 320,
    "sliding_window": 8,
    "sliding_window_pattern": 2,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
CONNECTORS = {
    "caption_channels": WIDTH,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": HEADS,
    "video_connector_attention_head_dim": 8,
    "video_gated_attn": True,
    "video_hidden_dim": 32,
    "audio_connector_num_attention_heads": HEADS,
    "audio_connector_attention_head_dim": 4,
    "audio_gated_attn": True,
    "audio_hidden_dim": 16,
    "rope_type": "split",
    "per_modality_projections": True,
    "proj_bias": True,
}


@torch.no_grad()
def fill(model):
    """Random weights, none of them neutral."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.named_parameters()):
        size = 0.25 if value.ndim == 1 else 1.0 if "embed_tokens" in name else value.shape[-1] ** -0.5
        value.copy_(torch.randn(value.shape, generator=generator) * size)
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The peers, and the folders that they are saved to."""
    root = tmp_path_factory.mktemp("published")
    gemma = fill(Gemma3ForConditionalGeneration(Gemma3Config(text_config=GEMMA, vision_config=VISION)))
    gemma.save_pretrained(root / "gemma")
    build_tokenizer().save(str(root / "gemma" / "tokenizer.json"))
    connectors = fill(LTX2TextConnectors(**CONNECTORS))
    connectors.save_pretrained(root / "connectors")
    return root, gemma, connectors


@torch.no_grad()
def peer_contexts(root, gemma, connectors):
    """What diffusers' pipeline does with prompts."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(root / "gemma" / "tokenizer.json"), pad_token="<pad>", padding_side="left"
    )
    found = tokenizer(list(PROMPTS), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    states = gemma.model.language_model(
        found["input_ids"], attention_mask=found["attention_mask"], output_hidden_states=True
    ).hidden_states
    video, audio, mask = connectors(torch.stack(states, dim=-1), found["attention_mask"])
    return video.numpy(), audio.numpy(), mask.numpy()


def test_contexts_of_converted_weights_are_those_of_the_published_ones(published, tmp_path, capsys):
    root, gemma, connectors = published
    weights, prompts, out = tmp_path / "weights", tmp_path / "prompts.txt", tmp_path / "contexts.safetensors"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    sources = ["--from", str(root / "gemma"), "--from", str(root / "connectors")]
    assert convert(["convert", *sources, "--out", str(weights)]) == 0
    assert main(["contexts", "--prompts", str(prompts), "--weights", str(weights), "--out", str(out)]) == 0
    ours, theirs = open_store(out).read(PROMPTS), peer_contexts(root, gemma, connectors)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(mine), other, atol=2e-3, rtol=2e-3)
    rows = np.asarray(ours.video)
    assert np.abs(rows[0] - rows[1]).max() > 0.1
