"""Tiny live feature extractors and connectors of ltx-core 1.0.0 and diffusers, with one set of random weights."""

import functools
import re

import numpy as np
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from ltx_core.model.transformer.rope import LTXRopeType, generate_freq_grid_np, precompute_freqs_cis
from ltx_core.text_encoders.gemma.embeddings_connector import Embeddings1DConnector
from ltx_core.text_encoders.gemma.embeddings_processor import EmbeddingsProcessor
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractorV1, FeatureExtractorV2

WIDTH, STATES, LAYERS, REGISTERS, TOKENS, HEADS = 32, 5, 2, 8, 16, 4
HEAD_SIZES = {False: (8, 8), True: (16, 12)}  # video, audio; by whether it is 2.3
RENAMES = (
    (r"^feature_extractor\.", "text_embedding_projection."),
    (r"^(video|audio)_connector\.", r"model.diffusion_model.\1_embeddings_connector."),
)
DIFFUSERS_RENAMES = (
    (r"^feature_extractor\.(\w*)aggregate_embed", r"\1text_proj_in"),
    (r"transformer_1d_blocks", "transformer_blocks"),
    (r"\.([qk])_norm\.", r".norm_\1."),
)


@functools.cache
def build_core(newer: bool) -> EmbeddingsProcessor:
    """Build ltx-core's processor; every weight is random and large enough to matter."""
    sizes = HEAD_SIZES[newer]
    inputs = WIDTH * STATES
    if newer:
        video, audio = (torch.nn.Linear(inputs, HEADS * size) for size in sizes)
        extractor = FeatureExtractorV2(video, WIDTH, audio)
    else:
        extractor = FeatureExtractorV1(torch.nn.Linear(inputs, WIDTH, bias=False), is_av=True)
    connectors = [
        Embeddings1DConnector(
            attention_head_dim=size,
            num_attention_heads=HEADS,
            num_layers=LAYERS,
            positional_embedding_max_pos=[4096],
            num_learnable_registers=REGISTERS,
            rope_type=LTXRopeType.SPLIT,
            double_precision_rope=True,
            apply_gated_attention=newer,
        )
        for size in sizes
    ]
    core = EmbeddingsProcessor(
        feature_extractor=extractor, video_connector=connectors[0], audio_connector=connectors[1]
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(core.float().named_parameters()):
            size = 0.25 if value.ndim == 1 else 1.0 if "registers" in name else value.shape[-1] ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * size + float(name.endswith("norm.weight")))
    return core.eval()


@functools.cache
def build_diffusers(newer: bool) -> LTX2TextConnectors:
    """Build diffusers' connectors with the weights of ltx-core's."""
    options = {}
    for stream, size in zip(("video", "audio"), HEAD_SIZES[newer], strict=True):
        options |= {
            f"{stream}_connector_num_attention_heads": HEADS,
            f"{stream}_connector_attention_head_dim": size,
            f"{stream}_connector_num_layers": LAYERS,
            f"{stream}_connector_num_learnable_registers": REGISTERS,
            f"{stream}_gated_attn": newer,
            f"{stream}_hidden_dim": HEADS * size,
        }
    model = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=STATES,
        rope_type="split",
        per_modality_projections=newer,
        proj_bias=newer,
        **options,
    )
    model.load_state_dict({_rename(name, DIFFUSERS_RENAMES): x for name, x in build_core(newer).state_dict().items()})
    return model.eval()


def _rename(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, other in pairs:
        name = re.sub(pattern, other, name)
    return name


def get_original(newer: bool) -> dict[str, np.ndarray]:
    """List the weights under the names of a published file."""
    return {_rename(name, RENAMES): value.numpy() for name, value in build_core(newer).state_dict().items()}


def get_diffusers(newer: bool) -> dict[str, np.ndarray]:
    """List the weights under the names of diffusers."""
    return {name: value.numpy() for name, value in build_diffusers(newer).state_dict().items()}


@torch.no_grad()
def extract_core(newer: bool, states: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of both streams; states [K, B, X, D]."""
    video, audio = build_core(newer).feature_extractor([torch.from_numpy(s) for s in states], torch.from_numpy(mask))
    return video.numpy(), audio.numpy()


@torch.no_grad()
def run_core(newer: bool, states: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return contexts and mask; only one prompt at a time."""
    core = build_core(newer)
    return tuple(
        x.numpy() for x in core.process_hidden_states([torch.from_numpy(s) for s in states], torch.from_numpy(mask))
    )


@torch.no_grad()
def run_diffusers(newer: bool, states: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return contexts and mask."""
    moved = torch.from_numpy(np.moveaxis(states, 0, -1).copy())
    return tuple(x.numpy() for x in build_diffusers(newer)(moved, torch.from_numpy(mask)))


def reference_rotary(head_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines that the peers use, [1, heads, tokens, H/2]."""
    places = torch.arange(TOKENS, dtype=torch.float32)[None, None, :]
    cos, sin = precompute_freqs_cis(
        indices_grid=places,
        dim=HEADS * head_size,
        out_dtype=torch.float32,
        theta=10_000.0,
        max_pos=[4096],
        num_attention_heads=HEADS,
        rope_type=LTXRopeType.SPLIT,
        freq_grid_generator=generate_freq_grid_np,
    )
    return cos.numpy(), sin.numpy()
