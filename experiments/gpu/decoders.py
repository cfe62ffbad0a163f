"""Both decoders of a stream by themselves, on random latents."""

from collections.abc import Callable
from typing import Any

import jax

from omniforcing_jax.pipeline.checks import student_sampler
from omniforcing_jax.pipeline.pipeline import Codecs, PipelineConfig
from omniforcing_jax.stream.decode import decode_audio, decode_video

Decoder = Callable[[int, Any], tuple[Any, Any]]
"""Takes a block's number and a carry, returns what is shown or heard and the next carry."""


def random_decoders(preset: PipelineConfig, codecs: Codecs, dtype: Any, lookahead: int = 0) -> dict[str, Decoder]:
    """Return the decoders of picture and sound."""
    grid, first, later = preset.grid(*preset.resolution), _latents(preset, 0), _latents(preset, 1)

    def video(k: int, carry: Any) -> tuple[Any, Any]:
        tokens, _ = later if k else first
        return decode_video(codecs, tokens, carry, grid=grid, dtype=dtype, lookahead=lookahead)

    def audio(k: int, carry: Any) -> tuple[Any, Any]:
        _, latents = later if k else first
        return decode_audio(codecs, latents, carry)

    return {"video": video, "audio": audio}


def _latents(preset: PipelineConfig, k: int) -> tuple[jax.Array, jax.Array]:
    """Draw the latents of block k."""
    block, key, (rows, columns) = (
        student_sampler(preset).layout.block(k),
        jax.random.key(k),
        preset.grid(*preset.resolution),
    )
    tokens, latents = (block.video_end - block.video_start) * rows * columns, block.audio_end - block.audio_start
    video, audio = preset.model.video.latent_channels, preset.model.audio.latent_channels
    return jax.random.normal(key, (1, tokens, video)), jax.random.normal(key, (1, latents, audio))
