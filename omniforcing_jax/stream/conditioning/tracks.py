"""Conditioning latents: given picture and sound, encoded block by block.

A `LatentTrack` belongs to one stream, `ConditioningTracks` to both. Encoders carry their state from block to block, as
the decoders do, so that the latents equal those of the whole clip. Each block is encoded when it is first needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict
from jaxtyping import Array, Float, Float32, UInt8

from omniforcing_jax.codecs import audio_vae, video_vae
from omniforcing_jax.codecs.mel import MelConfig, log_mel
from omniforcing_jax.layout import Layout, pixel_frames
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.rollout import NO_CONDITIONING
from omniforcing_jax.streams import Streams


class LatentTrack:
    """Latents of one stream for its first `blocks` blocks.

    Args:
        pieces: Yields the tokens [1, T, C] of block after block.
        blocks: Number of blocks.
    """

    def __init__(self, pieces: Iterator[Array], blocks: int) -> None:
        self.blocks = blocks
        self._pieces, self._made = pieces, list[Array]()

    def __getitem__(self, k: int) -> Array | None:
        """Return the tokens of block k, or None if the block is not given."""
        if k >= self.blocks:
            return None
        while len(self._made) <= k:
            self._made.append(next(self._pieces))
        return self._made[k]


@dataclass(frozen=True)
class ConditioningTracks:
    """Conditioning latents of both streams.

    Attributes:
        video: The picture's track, or None.
        audio: The sound's track, or None.
        dropped: Number of first blocks, all of them given, whose chunks are left out.
    """

    video: LatentTrack | None = None
    audio: LatentTrack | None = None
    dropped: int = 0

    @property
    def blocks(self) -> int:
        """Number of blocks with any conditioning."""
        return max((track.blocks for track in (self.video, self.audio) if track is not None), default=0)

    def at(self, k: int) -> Streams:
        """Return the conditioning latents of block k."""
        if self.video is None and self.audio is None:
            return NO_CONDITIONING
        return Streams(
            video=None if self.video is None else self.video[k], audio=None if self.audio is None else self.audio[k]
        )


NO_TRACKS = ConditioningTracks()


def frame_counts(layout: Layout, blocks: int) -> list[int]:
    """Count the pixel frames of each block."""
    ends = [pixel_frames(layout.block(k).video_end) for k in range(blocks)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def encode_picture(
    codecs: Codecs, batches: Iterator[UInt8[np.ndarray, "F H W 3"]], dtype: Any
) -> Iterator[Float[Array, "1 T C"]]:
    """Encode the frames of block after block to video tokens."""
    carry = None
    for frames in batches:
        tokens, carry = _encode_frames(codecs, frames[None], carry, dtype=dtype)
        yield tokens


@partial(jax.jit, static_argnames="dtype", donate_argnames="carry")
def _encode_frames(
    codecs: Codecs, frames: UInt8[Array, "1 F H W 3"], carry: VariableDict | None, *, dtype: Any
) -> tuple[Float32[Array, "1 T C"], VariableDict]:
    pixels = frames.astype(dtype) / 127.5 - 1
    if carry is None:
        latents, carry = video_vae.encode_first(codecs.video_config, codecs.video, pixels)
    else:
        latents, carry = video_vae.encode_next(codecs.video_config, codecs.video, pixels, carry)
    return latents.reshape(1, -1, latents.shape[-1]).astype("float32"), carry


def encode_sound(
    codecs: Codecs, waveform: Float32[np.ndarray, "samples channels"], layout: Layout, blocks: int, mel: MelConfig
) -> Iterator[Float32[Array, "1 A E"]]:
    """Encode the sound of block after block to audio tokens.

    The mel rows equal those of the whole waveform: each piece has margins for the windows at its ends.

    Args:
        codecs: Codecs with the encoder.
        waveform: Samples at the rate of `mel`, long enough for the rows of all blocks. Samples after these rows only
            fill the last windows.
        layout: Layout of the blocks.
        blocks: Number of blocks.
        mel: Config of the log-mel spectrogram.
    """
    rows = [codecs.audio_config.mel_rows(layout.block(k).audio_end) for k in range(blocks)]
    edge, carry = _edge_rows(mel) * mel.hop, None
    padded = np.pad(waveform, ((edge, edge), (0, 0)), mode="reflect")
    for start, end in zip([0, *rows], rows, strict=False):
        piece = padded[start * mel.hop : (end - 1) * mel.hop + 2 * edge]
        tokens, carry = _encode_piece(codecs, piece[None], carry, mel=mel)
        yield tokens


@partial(jax.jit, static_argnames="mel", donate_argnames="carry")
def _encode_piece(
    codecs: Codecs, piece: Float32[Array, "1 samples channels"], carry: VariableDict | None, *, mel: MelConfig
) -> tuple[Float32[Array, "1 A E"], VariableDict]:
    edge = _edge_rows(mel)
    rows = log_mel(piece, mel)[:, edge:-edge]
    return audio_vae.encode_block(codecs.audio_config, codecs.audio, rows, carry)


def _edge_rows(mel: MelConfig) -> int:
    """Count the rows at either end of a piece whose windows reach beyond it."""
    return -(-(mel.n_fft // 2) // mel.hop)
