"""Tiny live transformers of ltx-core 1.0.0 and diffusers with one set of random weights.

The size and the inputs are those of the recorded checksums in test_transformer_parity. Every parameter is random and
large enough to matter (norms, tables and biases included), so a swapped row shows at 1e-1.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers_keys import rename
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.rope import LTXRopeType
from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape

LAYERS, HEADS, VIDEO_HEAD, AUDIO_HEAD, CHANNELS, CAPTION = 2, 4, 16, 8, 8, 24
VIDEO, AUDIO = HEADS * VIDEO_HEAD, HEADS * AUDIO_HEAD
GRID, FPS, AUDIO_FRAMES, WORDS, BATCH = (3, 2, 4), 24.0, 17, 6, 2
TOKENS = GRID[0] * GRID[1] * GRID[2]
SIZES = {
    "num_layers": LAYERS,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": VIDEO_HEAD,
    "cross_attention_dim": VIDEO,
    "audio_in_channels": CHANNELS,
    "audio_out_channels": CHANNELS,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO_HEAD,
    "audio_cross_attention_dim": AUDIO,
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One batch for every peer: tokens, contexts, sigmas, bounds and what is switched off."""

    video: np.ndarray
    audio: np.ndarray
    context_v: np.ndarray
    context_a: np.ndarray
    sigma_v: np.ndarray  # [B], the scalar of the stream
    sigma_a: np.ndarray
    token_sigma_v: np.ndarray  # [B, T]
    token_sigma_a: np.ndarray  # [B, A]
    text_mask: np.ndarray | None = None
    stg_layers: tuple[int, ...] = ()  # value pass-through in both streams, all samples
    stg_samples: tuple[int, ...] = field(default=tuple(range(BATCH)))
    isolated: bool = False
    keyframes: np.ndarray | None = None  # [T], marked tokens, for LTX-2.5 in diffusers


def make_inputs(newer: bool) -> Inputs:
    """Draw the inputs in the order of the recipe; `newer` (2.3) contexts are already projected."""
    generator = torch.Generator().manual_seed(1)
    widths = (VIDEO, AUDIO) if newer else (CAPTION, CAPTION)
    shapes = [(TOKENS, CHANNELS), (AUDIO_FRAMES, CHANNELS), (WORDS, widths[0]), (WORDS, widths[1])]
    video, audio, context_v, context_a = (torch.randn(BATCH, *s, generator=generator).numpy() for s in shapes)
    sigma = np.array([0.7, 0.3], np.float32)
    return Inputs(
        video=video,
        audio=audio,
        context_v=context_v,
        context_a=context_a,
        sigma_v=sigma,
        sigma_a=sigma,
        token_sigma_v=np.repeat(sigma[:, None], TOKENS, 1),
        token_sigma_a=np.repeat(sigma[:, None], AUDIO_FRAMES, 1),
    )


def make_bounds() -> tuple[torch.Tensor, torch.Tensor]:
    """Build start and end of every token: video [B, 3, T, 2] (seconds, pixels), audio [B, 1, A, 2]."""
    shape = VideoLatentShape(BATCH, CHANNELS, *GRID)
    bounds = VideoLatentPatchifier(1).get_patch_grid_bounds(shape)
    video = get_pixel_coords(bounds, SpatioTemporalScaleFactors.default(), causal_fix=True).float()
    video[:, 0] /= FPS
    audio = AudioPatchifier(1).get_patch_grid_bounds(AudioLatentShape(BATCH, CHANNELS, AUDIO_FRAMES, 16))
    return video, audio.float()


def build_core(
    newer: bool, rotary: str, precise_grid: bool = True, small: bool = False, theta: float = 10_000.0
) -> LTXModel:
    """Build ltx-core's model with random weights; `small` fills as in the recorded checksums."""
    options = {"apply_gated_attention": True, "cross_attention_adaln": True} if newer else {}
    if not newer:
        options["caption_projection"] = PixArtAlphaTextProjection(CAPTION, VIDEO)
        options["audio_caption_projection"] = PixArtAlphaTextProjection(CAPTION, AUDIO)
    model = LTXModel(
        **SIZES,
        av_ca_timestep_scale_multiplier=1000,
        rope_type=LTXRopeType(rotary),
        double_precision_rope=precise_grid,
        positional_embedding_theta=theta,
        **options,
    ).eval()
    model.load_state_dict(fill(model.state_dict(), small))
    return model


def fill(weights: dict[str, torch.Tensor], small: bool) -> dict[str, torch.Tensor]:
    """Draw every weight from one generator, in the order of the sorted names."""
    generator = torch.Generator().manual_seed(0)
    filled = {}
    for name in sorted(weights):
        shape = weights[name].shape
        size = 0.05 if small else 0.25 if weights[name].ndim == 1 else 0.35 if "table" in name else shape[-1] ** -0.5
        filled[name] = torch.randn(shape, generator=generator) * size + float(name.endswith("norm.weight"))
    return filled


def get_weights(model: LTXModel) -> dict[str, np.ndarray]:
    """List a peer's weights under the original names."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


@torch.no_grad()
def run_core(model: LTXModel, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the velocities of both streams."""
    bounds_v, bounds_a = make_bounds()
    mask = None if inputs.text_mask is None else torch.from_numpy(inputs.text_mask)

    def modality(latent, sigma, token_sigma, bounds, context):
        return Modality(
            latent=torch.from_numpy(latent),
            sigma=torch.from_numpy(sigma),
            timesteps=torch.from_numpy(token_sigma),
            positions=bounds,
            context=torch.from_numpy(context),
            context_mask=mask,
        )

    video = modality(inputs.video, inputs.sigma_v, inputs.token_sigma_v, bounds_v, inputs.context_v)
    audio = modality(inputs.audio, inputs.sigma_a, inputs.token_sigma_a, bounds_a, inputs.context_a)
    velocity_v, velocity_a = model(video, audio, _perturb(inputs))
    return velocity_v.numpy(), velocity_a.numpy()


def _perturb(inputs: Inputs) -> BatchedPerturbationConfig:
    """Say for every sample what is switched off."""
    kinds = PerturbationType
    skips = [
        Perturbation(kind, list(inputs.stg_layers)) for kind in (kinds.SKIP_VIDEO_SELF_ATTN, kinds.SKIP_AUDIO_SELF_ATTN)
    ]
    cuts = [Perturbation(kind, None) for kind in (kinds.SKIP_A2V_CROSS_ATTN, kinds.SKIP_V2A_CROSS_ATTN)]
    return BatchedPerturbationConfig(
        [
            PerturbationConfig((skips if b in inputs.stg_samples else []) + (cuts if inputs.isolated else []))
            for b in range(BATCH)
        ]
    )


def build_diffusers(core: LTXModel, newer: bool, rotary: str, **more) -> LTX2VideoTransformer3DModel:
    """Build diffusers' model with the weights of ltx-core's under their other names; `more` are further options."""
    names = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod", "perturbed_attn")
    options = dict.fromkeys(names, True) | {"use_prompt_embeddings": False} if newer else {"caption_channels": CAPTION}
    options = options | more
    model = LTX2VideoTransformer3DModel(**SIZES, rope_type=rotary, rope_double_precision=True, **options).eval()
    model.load_state_dict({rename(name): value for name, value in core.state_dict().items()})
    return model


@torch.no_grad()
def run_diffusers(model: LTX2VideoTransformer3DModel, inputs: Inputs, cross: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the velocities of both streams; `cross` picks the other stream's sigma."""
    bounds_v, bounds_a = make_bounds()
    mask = None if inputs.text_mask is None else torch.from_numpy(inputs.text_mask)
    marked = None if inputs.keyframes is None else torch.tensor(inputs.keyframes)[None, :, None].expand(BATCH, -1, -1)
    kept = torch.tensor([0.0 if b in inputs.stg_samples else 1.0 for b in range(BATCH)])
    velocity_v, velocity_a = model(
        hidden_states=torch.from_numpy(inputs.video),
        audio_hidden_states=torch.from_numpy(inputs.audio),
        encoder_hidden_states=torch.from_numpy(inputs.context_v),
        audio_encoder_hidden_states=torch.from_numpy(inputs.context_a),
        timestep=torch.from_numpy(inputs.token_sigma_v) * 1000,
        audio_timestep=torch.from_numpy(inputs.token_sigma_a) * 1000,
        sigma=torch.from_numpy(inputs.sigma_v) * 1000,
        audio_sigma=torch.from_numpy(inputs.sigma_a) * 1000,
        encoder_attention_mask=mask,
        audio_encoder_attention_mask=mask,
        video_coords=bounds_v,
        audio_coords=bounds_a,
        isolate_modalities=inputs.isolated,
        spatio_temporal_guidance_blocks=list(inputs.stg_layers),
        perturbation_mask=kept if inputs.stg_layers else None,
        use_cross_timestep=cross,
        video_keyframes_mask=marked,
        return_dict=False,
    )
    return velocity_v.numpy(), velocity_a.numpy()
