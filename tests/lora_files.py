"""LoRA files with random factors for tiny networks, and the networks with such a file fused by the converters."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from conversion import read_plan, to_source
from safetensors.numpy import save_file

from converters.component import LTX2
from converters.formats.transformer import COMPONENT, PREFIX
from converters.lazy_tensor import wrap_array
from converters.lora.fuse import fuse_lora
from converters.plan import plan_component
from converters.source_component import SourceComponent
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.weights import fill_tree

MODULES = (  # of every kind: one layer only, one of a joined matrix only, outside the layers, both streams, crossings
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn1.to_v",
    "transformer_blocks.1.attn1.to_k",
    "transformer_blocks.0.attn2.to_k",
    "transformer_blocks.1.audio_attn1.to_out.0",
    "transformer_blocks.0.audio_attn2.to_v",
    "transformer_blocks.1.audio_to_video_attn.to_q",
    "transformer_blocks.0.video_to_audio_attn.to_v",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.audio_ff.net.2",
    "patchify_proj",
    "adaln_single.linear",
    "audio_proj_out",
)


def draw_lora(config: ModelConfig, rank: int = 3, seed: int = 0, modules=MODULES) -> dict[str, np.ndarray]:
    """Draw factors and alphas by module, as musubi writes them, with original names; ranks differ by one."""
    rng = np.random.default_rng(seed)
    shapes = {place.source: place.source_shape for place in COMPONENT.expand(config, LTX2)}
    tensors = {}
    for i, module in enumerate(modules):
        (rows, columns), own = shapes[f"{PREFIX}{module}.weight"], rank + i % 2
        tensors[f"{module}.lora_down.weight"] = (rng.normal(size=(own, columns)) / columns**0.5).astype(np.float32)
        tensors[f"{module}.lora_up.weight"] = rng.normal(size=(rows, own)).astype(np.float32)
        tensors[f"{module}.alpha"] = np.array(0.7 * own, np.float32)
    return tensors


def write_lora(path: Path, config: ModelConfig, **draws) -> Path:
    """Write a drawn LoRA; returns its file."""
    save_file({f"diffusion_model.{key}": value for key, value in draw_lora(config, **draws).items()}, path)
    return path


def fuse(config: ModelConfig, transformer, *loras: tuple[Path, float]):
    """Fuse LoRAs into a network as `convert --lora` does."""
    source = SourceComponent(
        name=COMPONENT.name,
        format="test",
        naming=LTX2,
        where="source",
        tensors={k: wrap_array(v, "source") for k, v in to_source(COMPONENT, LTX2, config, transformer).items()},
        component=COMPONENT,
        config=config,
    )
    plans = {COMPONENT.name: plan_component(source)}
    for path, strength in loras:
        plans, _ = fuse_lora(plans, path, strength)
    fused = read_plan(plans[COMPONENT.name])
    return fill_tree(COMPONENT.abstract(config), {name: jnp.asarray(value) for name, value in fused.items()})


def fuse_pipeline(pipeline, *loras: tuple[Path, float]):
    """Fuse LoRAs into the network of a pipeline whose layers are stacked."""
    fused = fuse(pipeline.config.model, pipeline.transformer, *loras)
    return dataclasses.replace(pipeline, transformer=fused)
