"""LTX-2's own network, loaded by ltx-core from LTX-2's file.

Source: ltx-core@1.0.0:loader/single_gpu_model_builder.py; ltx-core@1.0.0:model/transformer/model.py.
"""

from pathlib import Path
from typing import Any

import numpy as np

from omniforcing_jax.io.extras import need
from omniforcing_jax.io.tensor_file import open_tensors

from ...float8 import FLOAT8
from .inputs import AUDIO_FRAMES, BATCH, GRID, Inputs, Peer

FRAMES_PER_SECOND = 24.0


def load_ltx_core(path: Path) -> Peer:
    """Load the network in float32, on the CPU.

    Raises:
        ValueError: ltx-core or PyTorch is missing, or the file is none that ltx-core reads.
    """
    need("ltx_core", extra="record")
    need("torch", extra="convert")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: ltx-core reads LTX-2's .safetensors file; use --record diffusers for a folder")
    if any(entry.dtype in FLOAT8 for entry in open_tensors(path).entries.values()):
        raise ValueError(f"{path}: has float8 tensors, whose scales are left out here; record LTX-2's bfloat16 file")
    import torch
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder
    from ltx_core.model.transformer.model_configurator import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator

    builder = SingleGPUModelBuilder(
        model_class_configurator=LTXModelConfigurator,
        model_path=str(path),
        model_sd_ops=LTXV_MODEL_COMFY_RENAMING_MAP,
    )
    model = builder.build(torch.device("cpu"), torch.float32).eval()
    lacking = [name for name, value in model.named_parameters() if value.is_meta]
    if lacking:
        raise ValueError(f"{path}: ltx-core finds no {lacking[0]} in it")
    captions = [getattr(model, name, None) for name in ("caption_projection", "audio_caption_projection")]
    widths = [
        width if caption is None else caption.linear_1.in_features
        for caption, width in zip(captions, (model.inner_dim, model.audio_inner_dim), strict=True)
    ]
    return Peer(
        name="ltx-core",
        channels=(model.patchify_proj.in_features, model.audio_patchify_proj.in_features),
        widths=(widths[0], widths[1]),
        settings={
            "rope": model.rope_type.value,
            "freq_grid": "float64" if model.double_precision_rope else "float32",
            "av_ca_timestep_scale_multiplier": float(model.av_ca_timestep_scale_multiplier),
        },
        run=lambda inputs: _run(model, inputs),
    )


def _run(model: Any, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    need("torch", extra="convert")
    need("ltx_core", extra="record")
    import torch
    from ltx_core.guidance.perturbations import BatchedPerturbationConfig, PerturbationConfig
    from ltx_core.model.transformer.modality import Modality

    of_stream = zip(inputs.latents, inputs.sigmas, inputs.token_sigmas, inputs.contexts, strict=True)
    streams = [
        Modality(
            **dict(zip(("latent", "sigma", "timesteps", "context"), map(torch.from_numpy, values), strict=True)),
            positions=positions,
            context_mask=torch.from_numpy(inputs.text_mask),
        )
        for values, positions in zip(of_stream, _positions(inputs), strict=True)
    ]
    nothing = BatchedPerturbationConfig([PerturbationConfig([]) for _ in range(BATCH)])
    with torch.no_grad():
        video, audio = model(*streams, nothing)
    return video.numpy(), audio.numpy()


def _positions(inputs: Inputs) -> tuple[Any, Any]:
    """Return start and end of every token, as ltx-core's pipelines make them: seconds and pixels."""
    need("ltx_core", extra="record")
    from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
    from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape

    channels = [latent.shape[-1] for latent in inputs.latents]
    bounds = VideoLatentPatchifier(1).get_patch_grid_bounds(VideoLatentShape(BATCH, channels[0], *GRID))
    video = get_pixel_coords(bounds, SpatioTemporalScaleFactors.default(), causal_fix=True).float()
    video[:, 0] /= FRAMES_PER_SECOND
    audio = AudioPatchifier(1).get_patch_grid_bounds(AudioLatentShape(BATCH, channels[1], AUDIO_FRAMES, 1))
    return video, audio.float()
