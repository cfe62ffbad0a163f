"""diffusers' network, loaded from a diffusers folder. It makes the positions of tokens itself.

Source: diffusers@0.42.1:models/transformers/transformer_ltx2.py; diffusers@0.42.1:pipelines/ltx2/pipeline_ltx2.py.
"""

from pathlib import Path
from typing import Any

import numpy as np

from omniforcing_jax.io.extras import need

from .inputs import AUDIO_FRAMES, BATCH, GRID, TOKENS, Inputs, Peer


def load_diffusers(path: Path) -> Peer:
    """Load the network in float32, on the CPU.

    Raises:
        ValueError: diffusers or PyTorch is missing, or the path is no folder that diffusers reads.
    """
    need("diffusers", extra="record")
    need("torch", extra="convert")
    import torch
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    folder = path / "transformer" if (path / "model_index.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise ValueError(f"{path}: diffusers reads folders with a config.json; use --record ltx-core for LTX-2's file")
    model = LTX2VideoTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).eval()
    config: Any = model.config
    widths = [config.caption_channels] * 2
    if not config.use_prompt_embeddings:
        widths = [config.cross_attention_dim, config.audio_cross_attention_dim]
    return Peer(
        name="diffusers",
        channels=(config.in_channels, config.audio_in_channels),
        widths=(widths[0], widths[1]),
        settings={
            "rope": config.rope_type,
            "freq_grid": "float64" if config.rope_double_precision else "float32",
            "av_ca_timestep_scale_multiplier": float(config.cross_attn_timestep_scale_multiplier),
        },
        run=lambda inputs: _run(model, inputs),
    )


def _run(model: Any, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    need("torch", extra="convert")
    import torch

    scale = model.config.timestep_scale_multiplier
    video, audio, context_v, context_a = (torch.from_numpy(each) for each in (*inputs.latents, *inputs.contexts))
    levels = [torch.from_numpy(each) * scale for each in (*inputs.token_sigmas, *inputs.sigmas)]
    mask = torch.from_numpy(inputs.text_mask)
    # LTX-2.5's own pipelines mark a clip's first latent frame, and diffusers' only with generated keyframes.
    marked = (torch.arange(TOKENS) < GRID[1] * GRID[2]).float().reshape(1, TOKENS, 1).expand(BATCH, -1, -1)
    is_marked = getattr(model.config, "use_keyframes_abs_pos_embedding", False)
    with torch.no_grad():
        velocities = model(
            hidden_states=video,
            audio_hidden_states=audio,
            encoder_hidden_states=context_v,
            audio_encoder_hidden_states=context_a,
            timestep=levels[0],
            audio_timestep=levels[1],
            sigma=levels[2],
            audio_sigma=levels[3],
            encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask,
            num_frames=GRID[0],
            height=GRID[1],
            width=GRID[2],
            audio_num_frames=AUDIO_FRAMES,
            use_cross_timestep=True,  # as the pipeline does
            **({"video_keyframes_mask": marked} if is_marked else {}),
            return_dict=False,
        )
    return velocities[0].numpy(), velocities[1].numpy()
