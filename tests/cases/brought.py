"""Files and folders as people have them, tiny, written by the libraries that write them."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import tiny_text
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from ltx_core.model.transformer.model import LTXModel, LTXModelType
from ltx_core.model.transformer.rope import LTXRopeType
from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection
from published import NEWER, SMALL, draw_network, save_ltx2, text_path
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

from converters.component import DIFFUSERS, HUGGING_FACE, LTX2
from converters.formats import transformer
from converters.registry import COMPONENTS
from omniforcing_jax.io.tensor_file import open_tensors

PREFIX = transformer.PREFIX
GEMMA = dataclasses.replace(tiny_text.ENCODER.gemma, is_global=(False, True), global_stretch=8.0)
VISION = tiny_text.VISION


def randomise(module, seed=0):
    """Give every parameter of a PyTorch module a random value, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return module.bfloat16()


def ltx_core_network(config=NEWER, seed=0):
    """Build ltx-core's network of a config, with random weights."""
    video, audio = config.video, config.audio
    options = {"apply_gated_attention": config.gated_attention, "cross_attention_adaln": config.text_adaln}
    if config.caption_channels is not None:
        options["caption_projection"] = PixArtAlphaTextProjection(config.caption_channels, video.width)
        options["audio_caption_projection"] = PixArtAlphaTextProjection(config.caption_channels, audio.width)
    model = LTXModel(
        model_type=LTXModelType.AudioVideo,
        num_attention_heads=video.heads,
        attention_head_dim=video.head_size,
        in_channels=video.latent_channels,
        out_channels=video.latent_channels,
        num_layers=config.layers,
        cross_attention_dim=video.width,
        audio_num_attention_heads=audio.heads,
        audio_attention_head_dim=audio.head_size,
        audio_in_channels=audio.latent_channels,
        audio_out_channels=audio.latent_channels,
        audio_cross_attention_dim=audio.width,
        rope_type=LTXRopeType.SPLIT,
        double_precision_rope=True,
        **options,
    )
    return randomise(model, seed)


def save_fine_tune(path, config=NEWER, seed=3):
    """Write a full fine-tune as LTX-2's trainer does: the network's state dict, and nothing else."""
    save_torch_file(ltx_core_network(config, seed).state_dict(), path)
    return path


def save_base(path, config=NEWER):
    """Write LTX-2's file: network and connectors, with the header's config."""
    tensors = draw_network(config) | draw_network(text_path(config), component=COMPONENTS["connectors"])
    save_ltx2(path, config, tensors=tensors)
    return path


def save_part(path, name, config, before="", header=False, seed=5):
    """Write one component of LTX-2's file alone, with another text before its keys, with or without the header."""
    component = COMPONENTS[name]
    published = component.namings[LTX2].prefixes[0]
    tensors = draw_network(config, component=component, seed=seed)
    tensors = {before + key.removeprefix(published): value for key, value in tensors.items()}
    save_file(tensors, path, {"config": json.dumps(component.namings[LTX2].table.write(config))} if header else None)
    return path


def save_gemma_folder(folder, config=GEMMA, tokenizer=True):
    """Write a text model's folder as transformers does."""
    values = COMPONENTS["text"].namings["hugging_face/text_only"].table.write(config)
    model = randomise(Gemma3ForCausalLM(Gemma3TextConfig(**values)))
    model.save_pretrained(folder)
    if tokenizer:
        tiny_text.save_tokenizer(folder)
    return folder


def multimodal_gemma(config=GEMMA):
    """Build transformers' multimodal Gemma; returns its tensors under the keys that ComfyUI has, without tokenizer."""
    values = COMPONENTS["text"].namings[HUGGING_FACE].table.write(config)
    model = randomise(Gemma3ForConditionalGeneration(Gemma3Config(**values, vision_config=VISION)))
    renames = (("model.language_model.", "model."), ("model.vision_tower.vision_model.", "vision_model."))
    renames = (
        *renames,
        ("model.vision_tower.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    )
    tensors = {}
    for key, value in model.state_dict().items():
        old, new = next(((a, b) for a, b in renames if key.startswith(a)), ("", ""))
        if key != "lm_head.weight":
            tensors[new + key.removeprefix(old)] = value.float().numpy().astype(ml_dtypes.bfloat16)
    return tensors


def save_comfy_gemma(path, config=GEMMA, change=None):
    """Write a text model as ComfyUI's users have it: one file, the tokenizer's bytes in it, no config."""
    tensors = multimodal_gemma(config) | {"spiece_model": np.frombuffer(b"pieces", np.uint8)}
    if change is not None:
        tensors = change(tensors)
    save_file(tensors, path)
    return path


def tokenizer_bytes(folder):
    """Return the bytes of a tiny tokenizer.json."""
    return (tiny_text.save_tokenizer(folder) / "tokenizer.json").read_bytes()


def save_packed_gemma(path, config=GEMMA):
    """Write a text model as ltx-core packs it: config in the header, tokenizer's files in bytes."""
    tensors = draw_network(config, HUGGING_FACE, component=COMPONENTS["text"])
    tensors["tokenizer_json"] = np.frombuffer(tokenizer_bytes(path.parent / "made"), np.uint8)
    tensors["hf_asset__tokenizer_config.json"] = np.frombuffer(b"{}", np.uint8)
    values = COMPONENTS["text"].namings[HUGGING_FACE].table.write(config)
    save_file(tensors, path, {"gemma_config": json.dumps(values)})
    return path


def save_pipeline(folder, extras=True):
    """Write a pipeline's folder with diffusers: a network, its scheduler, and what LTX-2.5 has beside them."""
    network = LTX2VideoTransformer3DModel.from_config(transformer.COMPONENT.namings[DIFFUSERS].table.write(SMALL))
    randomise(network).save_pretrained(folder / "transformer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    if extras:
        (folder / "duration_head").mkdir()
        (folder / "duration_head" / "config.json").write_text('{"_class_name": "LTX2DurationHead"}')
        LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, num_blocks_per_stage=1).save_pretrained(
            folder / "latent_upsampler"
        )
    index = {"_class_name": LTX2Pipeline.__name__, "transformer": ["diffusers", "LTX2VideoTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def load(path):
    """Read all tensors of a file, in any type."""
    file = open_tensors(path)
    return {key: file.read(key) for key in file.entries}


def quantise(path, source, style, metadata=None, before=PREFIX, modules=".attn1.to_"):
    """Write a file with some matrices in float8, as LTX-2 or ComfyUI writes them; returns their keys."""
    tensors = load(source)
    note = np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)
    keys = [key for key in tensors if modules in key and key.endswith(".weight") and "gate" not in key]
    for key in keys:
        module = key.removesuffix("weight")
        scale = np.abs(tensors[key].astype(np.float32)).max() / np.float32(448)
        tensors[key] = (tensors[key].astype(np.float32) / scale).astype(ml_dtypes.float8_e4m3fn)
        if style == "scaled_fp8":
            tensors |= {f"{module}scale_weight": np.array([scale]), f"{module}scale_input": np.ones(1, np.float32)}
            continue
        tensors[f"{module}weight_scale"] = np.array(scale)
        tensors |= {f"{module}comfy_quant": note} if style == "comfy_quant" else {}
        tensors |= {f"{module}input_scale": np.array(1, np.float32)} if style == "ltx2" else {}
    if style == "scaled_fp8":
        tensors[f"{before}scaled_fp8"] = np.zeros(2, ml_dtypes.float8_e4m3fn)
    save_file(tensors, path, metadata)
    return keys
