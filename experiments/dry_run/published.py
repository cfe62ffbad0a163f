"""A tiny LTX-2 as it is published: one file with all components and the header's config, and Gemma's folder.

Keys, sections of the header and the number of layers are those of the real files, widths are not. Weights are drawn.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from converters.component import HUGGING_FACE, LTX2
from converters.registry import COMPONENTS, PREFIXES
from omniforcing_jax.codecs.video_config import ALL, SPACE, TIME, VideoVAEConfig, compress, res
from omniforcing_jax.config import CrossTimestep, ModelConfig, StreamConfig
from omniforcing_jax.io.tensor_file import write_runs
from omniforcing_jax.pipeline.presets import LTX2_19B_STREAM
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig
from omniforcing_jax.text.features import FeatureNorm
from omniforcing_jax.text.gemma_config import GemmaConfig

CAPTIONS, TEXT_LAYERS = 24, 48
SCALE = 0.1  # of drawn weights: small enough that nothing overflows on the way through untrained layers
SPACE_MARK, SPECIAL = "▁", ("<pad>", "<eos>", "<bos>", "<unk>")

NETWORK = ModelConfig(
    layers=30,  # guidance perturbs layer 29
    video=StreamConfig(latent_channels=8, heads=2, head_size=12),
    audio=StreamConfig(latent_channels=16, heads=2, head_size=12),
    caption_channels=CAPTIONS,
    cross_timestep=CrossTimestep.CROSS,
)
CONNECTOR = ConnectorConfig(layers=1, heads=2, head_size=12, registers=4)
GEMMA = GemmaConfig(
    vocabulary=len(SPECIAL) + 256 + 1,
    width=CAPTIONS,
    mlp_width=40,
    heads=4,
    kv_heads=2,
    head_size=8,
    query_scale=8.0,
    window=6,
    is_global=(False, False, False, False, False, True) * (TEXT_LAYERS // 6),
)
PARTS = {
    "transformer": NETWORK,
    "connectors": ConnectorsConfig(
        text_width=CAPTIONS, text_states=TEXT_LAYERS + 1, norm=FeatureNorm.PER_PROMPT, video=CONNECTOR, audio=CONNECTOR
    ),
    "video_vae": VideoVAEConfig(
        latent_channels=8,
        patch_size=4,
        encoder_base_channels=8,
        decoder_base_channels=4,
        encoder_blocks=(*(block for kind in (SPACE, TIME, ALL, ALL) for block in (res(1), compress(kind))), res(1)),
        decoder_blocks=(*(block for kind in (ALL, ALL, ALL) for block in (res(1), compress(kind))), res(1)),
        causal_decoder=False,
    ),
    "audio_vae": dataclasses.replace(LTX2_19B_STREAM.audio_vae, z_channels=1, base_channels=16, res_blocks=1),
    "vocoder": dataclasses.replace(
        LTX2_19B_STREAM.vocoder,
        channels=(32, 16, 8, 4, 2, 1),
        resblock_kernels=(3,),
        resblock_dilations=((1, 3),),
    ),
}


def save_ltx2(path: Path) -> None:
    """Write every component under LTX-2's keys, with the header's config."""
    tensors, header = {}, {}
    for name in PREFIXES:
        tensors |= _draw(name, PARTS[name], LTX2)
        for section, values in COMPONENTS[name].namings[LTX2].table.write(PARTS[name]).items():
            header[section] = {**header.get(section, {}), **values}
    _write(path, tensors, {"config": json.dumps(header)})


def save_gemma(folder: Path) -> None:
    """Write Gemma as transformers keeps it, with a tokenizer that spells prompts in bytes."""
    folder.mkdir(parents=True)
    _write(folder / "model.safetensors", _draw("text", GEMMA, HUGGING_FACE), {"format": "pt"})
    config = COMPONENTS["text"].namings[HUGGING_FACE].table.write(GEMMA)
    (folder / "config.json").write_text(json.dumps(config))
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE_MARK]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE_MARK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    start = [("<bos>", pieces.index("<bos>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="$A $B", special_tokens=start)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))


def _draw(name: str, config: Any, naming: str) -> dict[str, np.ndarray]:
    """Draw a component's tensors; standard deviations are no draws, they divide."""
    rng = np.random.default_rng(0)
    drawn = {}
    for placement in COMPONENTS[name].expand(config, naming):
        values = SCALE * rng.normal(size=placement.source_shape)
        values = 1.0 + abs(values) if "std" in placement.source else values
        drawn[placement.source] = values.astype(ml_dtypes.bfloat16)
    return drawn


def _write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    layout = {name: (tensors[name].dtype, tensors[name].shape) for name in sorted(tensors)}
    write_runs(path, layout, lambda name: iter([tensors[name].reshape(-1)]), metadata)
