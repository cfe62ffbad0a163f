"""LTX-2.5's split files, tiny: the network's with its connectors, and the text encoder's with the text projection."""

import dataclasses
import json
from functools import cache

import ml_dtypes
import numpy as np
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from ltx25_files import NETWORK, draw_part, flatten_gemma
from published import NEWER, draw_network, text_path
from safetensors.numpy import save_file
from tiny_text import build_tokenizer
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

from converters.component import DIFFUSERS, LTX2, LTX2_TEXT
from converters.formats import connectors, gemma, transformer
from omniforcing_jax.text.gemma_config import GEMMA_4_12B, GlobalHeads

SIZES = {"vocabulary": 320, "width": 24, "mlp_width": 32, "heads": 2, "kv_heads": 2, "head_size": 8, "window": 8}
GLOBAL = GlobalHeads(kv_heads=1, head_size=16, keys_are_values=True)
GEMMA = dataclasses.replace(GEMMA_4_12B, **SIZES, global_heads=GLOBAL)
CONNECTORS = text_path(NEWER)
CONNECTORS = dataclasses.replace(
    CONNECTORS,  # of the network's widths
    video=dataclasses.replace(CONNECTORS.video, head_size=NEWER.video.width // CONNECTORS.video.heads),
    audio=dataclasses.replace(CONNECTORS.audio, head_size=NEWER.audio.width // CONNECTORS.audio.heads),
)
VERSION = {"gemma_version": "gemma4-12b-ltx-v1"}
PROJECTION = connectors.PROJECTION
PARTS = {  # towers that no prompt needs
    "vision_config": {"patch_size": 2, "pooling_kernel_size": 1, "mm_embed_dim": 4, "mm_posemb_size": 3},
    "audio_config": {"audio_embed_dim": 6},
}


@torch.no_grad()
def fill(model):
    """Draw every tensor of a module in bfloat16, none neutral; scales of layers are near 0.7, so that nothing grows."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(model.state_dict().items()):
        size = 0.25 if value.ndim == 1 else 1.0 if "embed_tokens" in name else value.shape[-1] ** -0.5
        drawn = torch.randn(value.shape, generator=generator) * size
        value.copy_((0.7 + 0.2 * drawn if "layer_scalar" in name else drawn).bfloat16())
    return model.eval()


@cache
def peer_gemma():
    """Transformers' own text model, with its towers."""
    values = gemma.COMPONENT.namings[LTX2_TEXT].table.write(GEMMA)
    return fill(Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(**values, **PARTS)))


@cache
def gemma_tensors(scale=ml_dtypes.bfloat16):
    """Its tensors under the keys of LTX-2.5's file; scales of layers have a type of their own."""
    tensors = {}
    for key, value in peer_gemma().state_dict().items():
        if key != "lm_head.weight":
            dtype = scale if key.endswith("layer_scalar") else ml_dtypes.bfloat16
            tensors[flatten_gemma(key)] = value.float().numpy().astype(dtype)
    return tensors


@cache
def connector_tensors():
    """Tensors of connectors and projections under LTX-2's keys."""
    drawn = draw_network(CONNECTORS, component=connectors.COMPONENT)
    return {key: (0.2 * value.astype(np.float32)).astype(value.dtype) for key, value in drawn.items()}


@cache
def peer_connectors():
    """Diffusers' own connectors, with the same weights."""
    places = [{p.native: {} for p in connectors.COMPONENT.expand(CONNECTORS, naming)} for naming in (LTX2, DIFFUSERS)]
    for places_of, naming in zip(places, (LTX2, DIFFUSERS), strict=True):
        for p in connectors.COMPONENT.expand(CONNECTORS, naming):
            places_of[p.native][p.layer] = p.source
    values = connectors.COMPONENT.namings[DIFFUSERS].table.write(CONNECTORS)
    state = {
        places[1][native][layer]: torch.from_numpy(connector_tensors()[source].astype(np.float32))
        for native, rows in places[0].items()
        for layer, source in rows.items()
    }
    model = LTX2TextConnectors(**{key: value for key, value in values.items() if key != "_class_name"})
    model.load_state_dict(state)
    return model.eval()


def save_network(path, version=VERSION, projection=False, header=True, config=NEWER):
    """Write the network's file: with connectors, and without the text projection unless it is asked for."""
    tensors = {key: each for key, each in connector_tensors().items() if projection or not key.startswith(PROJECTION)}
    section = transformer.COMPONENT.namings[LTX2].table.write(config)["transformer"]
    section |= connectors.COMPONENT.namings[LTX2].table.write(CONNECTORS)["transformer"]
    section["text_encoder_norm_type"] = "PER_TOKEN_RMS"  # LTX-2.5's header has capital letters
    metadata = {"config": json.dumps({"transformer": section, "scheduler": {"sampler": "LinearQuadratic"}})}
    metadata |= {"model_version": "2.5.0"} if version is None else {"gemma_source_checkpoint": json.dumps(version)}
    network = draw_part("transformer") if config == NETWORK else draw_network(config)
    save_file(network | tensors, path, metadata if header else None)
    return path


def save_text(path, version=VERSION, change=None, scale=ml_dtypes.bfloat16):
    """Write the text encoder's file as ltx-core 1.2 packs it."""
    tensors = gemma_tensors(scale) | {
        key: each for key, each in connector_tensors().items() if key.startswith(PROJECTION)
    }
    values = gemma.COMPONENT.namings[LTX2_TEXT].table.write(GEMMA) | PARTS | (version or {})
    for name, text in (("tokenizer_config", "{}"), ("processor_config", '{"a": 1}'), ("generation_config", "{} ")):
        tensors[f"hf_asset__{name}.json"] = np.frombuffer(text.encode(), np.uint8)
    tensors["hf_asset__chat_template.jinja"] = np.frombuffer(b"{{ it }}", np.uint8)
    tensors["tokenizer_json"] = np.frombuffer(newer_tokenizer().encode(), np.uint8)
    tensors = tensors if change is None else change(tensors)
    save_file(tensors, path, {"format": "pt", "gemma_config": json.dumps(values)})
    return path


def save_folder(folder):
    """Write the text model's folder as transformers does, with its tokenizer."""
    peer_gemma().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(newer_tokenizer())
    return folder


def newer_tokenizer():
    """Text of a tokenizer.json that adds no start token, as Gemma 4's."""
    return json.dumps(json.loads(build_tokenizer().to_str()) | {"post_processor": None})
