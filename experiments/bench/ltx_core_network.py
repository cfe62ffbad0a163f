"""ltx-core's network in PyTorch with the weights of ours, for programs that are timed or compared beside it.

This needs the development requirements (torch, ltx-core).
"""

from typing import Any

import numpy as np
import torch
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.rope import LTXRopeType
from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape

from converters.component import LTX2
from converters.formats import transformer
from converters.native_component import rename_tensors, wrap_tree
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.layout import FRAME_RATE

MEL_BINS = 16  # of an audio latent; positions do not depend on it


def build(model: ModelConfig, params: Any) -> LTXModel:
    """Build ltx-core's network of a 2.0 config with these weights.

    Raises:
        ValueError: The config has no caption projection, so it is not of 2.0.
    """
    captions, video, audio = model.caption_channels, model.video, model.audio
    if captions is None:
        raise ValueError("caption_channels=None: expected a network of LTX-2.0, which projects its captions")
    network = LTXModel(
        num_attention_heads=video.heads,
        attention_head_dim=video.head_size,
        in_channels=video.latent_channels,
        out_channels=video.latent_channels,
        num_layers=model.layers,
        cross_attention_dim=video.width,
        audio_num_attention_heads=audio.heads,
        audio_attention_head_dim=audio.head_size,
        audio_in_channels=audio.latent_channels,
        audio_out_channels=audio.latent_channels,
        audio_cross_attention_dim=audio.width,
        av_ca_timestep_scale_multiplier=1000,
        rope_type=LTXRopeType.SPLIT,
        double_precision_rope=True,
        caption_projection=PixArtAlphaTextProjection(captions, video.width),
        audio_caption_projection=PixArtAlphaTextProjection(captions, audio.width),
    )
    named = rename_tensors(wrap_tree(transformer.COMPONENT, model, params), LTX2)
    network.load_state_dict(
        {
            key.removeprefix(transformer.PREFIX): torch.from_numpy(np.array(tensor.load()))
            for key, tensor in named.items()
        }
    )
    return network.eval()


def bounds_of(frames: int, grid: tuple[int, int], audio_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each token of a clip begins and ends: video [1, 3, T, 2] (seconds, pixels), audio [1, 1, A, 2]."""
    shape = VideoLatentShape(1, 1, frames, *grid)
    bounds = VideoLatentPatchifier(1).get_patch_grid_bounds(shape)
    video = get_pixel_coords(bounds, SpatioTemporalScaleFactors.default(), causal_fix=True).float()
    video[:, 0] /= FRAME_RATE
    audio = AudioPatchifier(1).get_patch_grid_bounds(AudioLatentShape(1, 1, audio_frames, MEL_BINS))
    return video, audio.float()
