"""Latents of one block to picture and sound, in streaming and in whole-clip form.

Each decoder takes a carry and gives a carry; both are explicit trees, so a stream's state can hold them. The sound
of a block is `delay` samples late, because the vocoder looks ahead; what that means in seconds is the sampler's.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from flax.typing import VariableDict
from jaxtyping import Array, Float, Float32, UInt8

from omniforcing_jax.codecs import audio_vae, video_vae, vocoder
from omniforcing_jax.codecs.audio_vae import AudioVAE
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderCarry
from omniforcing_jax.pipeline import Codecs
from omniforcing_jax.rollout import to_frames


@struct.dataclass
class SoundCarry:
    """What the audio decoder and the vocoder remember between blocks."""

    decoder: VariableDict
    vocoder: VocoderCarry


@partial(jax.jit, static_argnames=("grid", "dtype"), donate_argnames="carry")
def decode_video(
    codecs: Codecs, tokens: Float[Array, "B T C"], carry: VariableDict | None, *, grid: tuple[int, int], dtype: Any
) -> tuple[UInt8[Array, "B frames H W 3"], VariableDict]:
    """Render the next latents of a stream; `carry` is None for block 0, and what came back afterwards."""
    latents = to_frames(tokens, grid).astype(dtype)
    if carry is None:
        pixels, carry = video_vae.decode_first(codecs.video_config, codecs.video, latents)
    else:
        pixels, carry = video_vae.decode_next(codecs.video_config, codecs.video, latents, carry)
    return to_bytes(pixels), carry


@partial(jax.jit, donate_argnames="carry")
def decode_audio(
    codecs: Codecs, latents: Float[Array, "B A C"], carry: SoundCarry | None
) -> tuple[Float32[Array, "B samples channels"], SoundCarry]:
    """Sound out the next latents of a stream, `codecs.vocoder_config.delay` samples late.

    The first `delay` samples of a stream stand before its start and are to be dropped.
    """
    decoder, held = (None, None) if carry is None else (carry.decoder, carry.vocoder)
    mel, decoder = audio_vae.decode_block(codecs.audio_config, codecs.audio, latents.astype(jnp.float32), decoder)
    samples, held = vocoder.push(codecs.vocoder_config, codecs.vocoder, mel, held)
    return samples, SoundCarry(decoder=decoder, vocoder=held)


@jax.jit
def flush_audio(codecs: Codecs, carry: SoundCarry) -> Float32[Array, "B delay channels"]:
    """Return the samples that still wait for rows that will not come."""
    return vocoder.flush(codecs.vocoder_config, codecs.vocoder, carry.vocoder)


@partial(jax.jit, static_argnames=("grid", "dtype"))
def decode_clip(
    codecs: Codecs, tokens: Float[Array, "B T C"], audio: Float[Array, "B A D"], *, grid: tuple[int, int], dtype: Any
) -> tuple[UInt8[Array, "B frames H W 3"], Float32[Array, "B samples channels"]]:
    """Decode whole clips: what the chunks of a stream add up to."""
    video = to_frames(tokens, grid).astype(dtype)
    pixels = cast(Array, VideoVAE(codecs.video_config).apply(codecs.video, video, method="decode"))
    mel = AudioVAE(codecs.audio_config).apply(codecs.audio, audio.astype(jnp.float32), method="decode")
    return to_bytes(pixels), cast(Array, Vocoder(codecs.vocoder_config).apply(codecs.vocoder, mel))


def to_bytes(pixels: Float[Array, "B frames H W 3"]) -> UInt8[Array, "B frames H W 3"]:
    """Map [-1, 1] to bytes: clipped and truncated. Source: specs/ltx2.md section 4."""
    return (jnp.clip((pixels.astype(jnp.float32) + 1) / 2, 0, 1) * 255).astype(jnp.uint8)
