"""Decode latents to picture and sound, block by block or a whole clip at once.

Each decoder takes a carry and returns the next one. Carries are explicit trees, so a stream's state can hold them. The
sound of a block is `delay` samples late, because the vocoder looks ahead. `ChunkStream` turns that into seconds.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import struct
from flax.typing import VariableDict
from jaxtyping import Array, Float, Float32, UInt8

from omniforcing_jax.codecs import audio_vae, upsampler, video_vae, vocoder
from omniforcing_jax.codecs.audio_vae import AudioVAE
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderCarry
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.rollout import to_frames


@struct.dataclass
class SoundCarry:
    """Carry of the audio decoder and the vocoder between blocks."""

    decoder: VariableDict
    vocoder: VocoderCarry


class NetworkCarries(NamedTuple):
    """Carries of the networks that make pixels of latents; None before the first decoded frame."""

    decoder: VariableDict | None
    upsampler: VariableDict | None


@struct.dataclass
class PictureCarry:
    """Carry of the video decoder between blocks.

    Attributes:
        networks: Carries of the decoder and of the upsampler.
        held: Latents that are not decoded yet, [B, F, h, w, C], as the network made them; None without a look-ahead.
    """

    networks: NetworkCarries
    held: Any


BEGINNING = PictureCarry(NetworkCarries(None, None), None)


def decode_video(
    codecs: Codecs,
    tokens: Float[Array, "B T C"],
    carry: PictureCarry | None,
    *,
    grid: tuple[int, int],
    dtype: Any,
    lookahead: int = 0,
) -> tuple[UInt8[Array, "B frames H W 3"], PictureCarry]:
    """Decode the next latents of a stream, `lookahead` latent frames late.

    Args:
        codecs: The codecs. With an upsampler they make a larger picture.
        tokens: Latents of a block.
        carry: Carry that the block before returned; None for block 0.
        grid: Latent rows and columns.
        dtype: Type to compute in.
        lookahead: Latent frames after the decoded ones that the upsampler sees, and a decoder that is not causal.

    Returns:
        Frames, at first perhaps none, and the next carry. `flush_video` returns the frames that it still holds.
    """
    carry = BEGINNING if carry is None else carry
    return _render(codecs, tokens, carry.networks, carry.held, grid=grid, dtype=dtype, lookahead=lookahead)


@partial(jax.jit, static_argnames=("grid", "dtype", "lookahead"), donate_argnames="networks")
def _render(
    codecs: Codecs,
    tokens: Float[Array, "B T C"],
    networks: NetworkCarries,
    held: Float[Array, "B F_held h w C"] | None,
    *,
    grid: tuple[int, int],
    dtype: Any,
    lookahead: int,
) -> tuple[UInt8[Array, "B frames H W 3"], PictureCarry]:
    """Decode all latents except for the look-ahead.

    The networks' carries are donated. The held latents are not, because their number changes at first.
    """
    latents = to_frames(tokens, grid).astype(dtype)
    if held is not None:
        latents = jnp.concatenate([held, latents], axis=1)
    if latents.shape[1] <= lookahead:
        return _no_frames(codecs, latents), dataclasses.replace(BEGINNING, held=latents)
    pixels, networks = _decode(codecs, latents, networks, lookahead)
    held = latents[:, latents.shape[1] - lookahead :] if lookahead else None
    return to_bytes(pixels), PictureCarry(networks, held)


@jax.jit
def flush_video(codecs: Codecs, carry: PictureCarry) -> UInt8[Array, "B frames H W 3"]:
    """Return the last frames of a stream, which had waited for a look-ahead."""
    assert carry.held is not None, "nothing is held without a look-ahead"
    return to_bytes(_decode(codecs, carry.held, carry.networks, 0)[0])


def lower_video(
    codecs: Codecs, tokens: Any, carry: PictureCarry | None, *, grid: tuple[int, int], dtype: Any, lookahead: int
) -> tuple[jax.stages.Lowered, PictureCarry]:
    """Lower the program that `decode_video` runs, for shapes; also return the shapes of the next carry."""
    carry = BEGINNING if carry is None else carry
    lowered = _render.lower(codecs, tokens, carry.networks, carry.held, grid=grid, dtype=dtype, lookahead=lookahead)
    return lowered, lowered.out_info[1]


def _decode(codecs: Codecs, latents: Array, networks: NetworkCarries, ahead: int) -> tuple[Array, NetworkCarries]:
    """Decode latents of which the last `ahead` are look-ahead; upsample them first, if there is an upsampler."""
    larger = networks.upsampler
    if codecs.upsampler is not None:
        latents, larger = upsampler.upsample_next(*codecs.upsampling, codecs.video, latents, larger, ahead)
    if codecs.video_config.causal_decoder:
        latents, ahead = latents[:, : latents.shape[1] - ahead], 0
    if networks.decoder is None:
        pixels, decoder = video_vae.decode_first(codecs.video_config, codecs.video, latents, ahead)
    else:
        pixels, decoder = video_vae.decode_next(codecs.video_config, codecs.video, latents, networks.decoder, ahead)
    return pixels, NetworkCarries(decoder, larger)


def _no_frames(codecs: Codecs, latents: Array) -> UInt8[Array, "B 0 H W 3"]:
    batch, _, rows, columns = latents.shape[:4]
    return jnp.zeros((batch, 0, *codecs.picture_size((rows, columns)), 3), jnp.uint8)


def rehearse_video(
    codecs: Codecs,
    tokens: Float[Array, "B T C"],
    carry: PictureCarry,
    *,
    grid: tuple[int, int],
    dtype: Any,
    lookahead: int,
) -> None:
    """Compile the programs of the blocks after this carry and of the end, on copies. `tokens` are any later block's."""
    if not lookahead:
        return
    seen: list[Any] = []
    while (kind := jax.tree.map(jnp.shape, carry)) not in seen:
        seen.append(kind)
        copied = jax.tree.map(jnp.copy, carry)
        _, carry = decode_video(codecs, tokens, copied, grid=grid, dtype=dtype, lookahead=lookahead)
    jax.block_until_ready(flush_video(codecs, carry))


@jax.jit
def decode_audio(
    codecs: Codecs, latents: Float[Array, "B A C"], carry: SoundCarry | None
) -> tuple[Float32[Array, "B samples channels"], SoundCarry]:
    """Decode the next audio latents of a stream, `codecs.vocoder_config.delay` samples late.

    The first `delay` samples of a stream lie before its start; the caller drops them. The carry is not donated: it is
    small, and XLA would copy each of its arrays to keep it until it was read.
    """
    decoder, held = (None, None) if carry is None else (carry.decoder, carry.vocoder)
    mel, decoder = audio_vae.decode_block(codecs.audio_config, codecs.audio, latents.astype(jnp.float32), decoder)
    samples, held = vocoder.push(codecs.vocoder_config, codecs.vocoder, mel, held)
    return samples, SoundCarry(decoder=decoder, vocoder=held)


@jax.jit
def flush_audio(codecs: Codecs, carry: SoundCarry) -> Float32[Array, "B delay channels"]:
    """Return the last samples of a stream, which had waited for the vocoder's look-ahead."""
    return vocoder.flush(codecs.vocoder_config, codecs.vocoder, carry.vocoder)


@partial(jax.jit, static_argnames=("grid", "dtype"))
def decode_clip(
    codecs: Codecs, tokens: Float[Array, "B T C"], audio: Float[Array, "B A D"], *, grid: tuple[int, int], dtype: Any
) -> tuple[UInt8[Array, "B frames H W 3"], Float32[Array, "B samples channels"]]:
    """Decode whole clips at once. The chunks of a stream add up to the same."""
    video = to_frames(tokens, grid).astype(dtype)
    pixels = cast(Array, VideoVAE(codecs.video_config).apply(codecs.video, video, method="decode"))
    mel = AudioVAE(codecs.audio_config).apply(codecs.audio, audio.astype(jnp.float32), method="decode")
    return to_bytes(pixels), cast(Array, Vocoder(codecs.vocoder_config).apply(codecs.vocoder, mel))


def to_bytes(pixels: Float[Array, "B frames H W 3"]) -> UInt8[Array, "B frames H W 3"]:
    """Map [-1, 1] to bytes, clipped and truncated. Source: ltx-core@1.0.0:model/video_vae/video_vae.py."""
    return (jnp.clip((pixels.astype(jnp.float32) + 1) / 2, 0, 1) * 255).astype(jnp.uint8)
