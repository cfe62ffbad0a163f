"""Tiny checkpoints as they are published: original keys, the header's config, other components beside the network."""

import dataclasses
import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from converters.component import DIFFUSERS, LTX2
from converters.transformer import COMPONENT
from omniforcing_jax.config import (
    TINY,
    CrossTimestep,
    GridPrecision,
    ModelConfig,
    RotaryConfig,
    RotaryKind,
    StreamConfig,
)

SMALL = dataclasses.replace(TINY, cross_timestep=CrossTimestep.CROSS)
NEWER = dataclasses.replace(SMALL, caption_channels=None, gated_attention=True, text_adaln=True)
FORCED = ModelConfig(
    layers=2,
    video=StreamConfig(latent_channels=3, heads=2, head_size=8),
    audio=StreamConfig(latent_channels=2, heads=2, head_size=4),
    caption_channels=5,
    rotary=RotaryConfig(kind=RotaryKind.INTERLEAVED, grid=GridPrecision.FLOAT32),
    gate_multiplier=1.0,
    sinks=2,
)


def draw(shapes, seed=0, dtype=ml_dtypes.bfloat16):
    """Draw tensors by key."""
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=shape).astype(dtype) for key, shape in shapes.items()}


def draw_network(config, naming=LTX2, seed=0, dtype=ml_dtypes.bfloat16):
    """Draw a network under a format's keys."""
    return draw({p.theirs: p.shape for p in COMPONENT.place(config, naming)}, seed, dtype)


def others(seed=1):
    """Draw tensors of components that have no table, and one that is no weight."""
    shapes = {
        "model.diffusion_model.video_embeddings_connector.learnable_registers": (4, 6),
        "model.diffusion_model.audio_embeddings_connector.learnable_registers": (4, 6),
        "text_embedding_projection.aggregate_embed.weight": (6, 12),
    }
    return draw(shapes, seed) | {"text_embedding_projection.count": np.array([3], np.int64)}


def save_ltx2(path, config=SMALL, extra=None, tensors=None, **metadata):
    """Write a file as LTX-2 is published; returns its tensors."""
    tensors = draw_network(config) | others() if tensors is None else tensors
    header = COMPONENT.namings[LTX2].write_config(config)
    header["transformer"] |= {"connector_num_layers": 2} | (extra or {})
    save_file(tensors, path, {"config": json.dumps(header)} | metadata)
    return tensors


def save_diffusers(folder, config=SMALL, dtype=np.float32):
    """Write a pipeline folder with its transformer only; returns its tensors."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
    values = COMPONENT.namings[DIFFUSERS].write_config(config) | {"_diffusers_version": "0.42.1"}
    (folder / "transformer" / "config.json").write_text(json.dumps(values))
    tensors = draw_network(config, DIFFUSERS, dtype=dtype)
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return tensors
