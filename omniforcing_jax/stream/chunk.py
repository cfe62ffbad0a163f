"""The contract between a stream and whoever consumes it.

A stream is an iterator of chunks. A file writer, a web player and the benchmark see nothing else: no
latents, no device arrays, no codec. What can be done with chunks alone (joining them) lives here too.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.layout import FRAME_RATE


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What one block adds to picture and sound, on the host.

    The two halves begin at their own times: the vocoder looks ahead, so sound comes a little later than the
    picture of the same block, and an early chunk may carry no samples at all.

    Attributes:
        index: Block that the chunk comes from; `close` may add one chunk with no frames.
        video: uint8 [F, H, W, 3], RGB.
        video_start_s: Time of the first frame in seconds.
        audio: float32 [samples, 2] in [-1, 1].
        audio_start_s: Time of the first sample in seconds.
        sample_rate: Samples per second.
    """

    index: int
    video: np.ndarray
    video_start_s: float
    audio: np.ndarray
    audio_start_s: float
    sample_rate: int

    def __repr__(self) -> str:
        frames, height, width, _ = self.video.shape
        picture = f"{frames} frames of {height}x{width} from {self.video_start_s:.2f} s"
        sound = f"{len(self.audio) / self.sample_rate:.2f} s of sound from {self.audio_start_s:.2f} s"
        return f"Chunk(index={self.index}, {picture}, {sound} at {self.sample_rate} Hz)"


def join_chunks(chunks: Sequence[Chunk]) -> tuple[UInt8[np.ndarray, "F H W 3"], Float32[np.ndarray, "samples 2"]]:
    """Return the picture and the sound of consecutive chunks as one clip.

    Args:
        chunks: At least one chunk, in order.
    """
    return np.concatenate([chunk.video for chunk in chunks]), np.concatenate([chunk.audio for chunk in chunks])


def cut_before(chunk: Chunk, start_s: float) -> Chunk:
    """Drop the frames and samples before a time, in seconds."""
    frames = max(0, round((start_s - chunk.video_start_s) * FRAME_RATE))
    samples = max(0, round((start_s - chunk.audio_start_s) * chunk.sample_rate))
    return dataclasses.replace(
        chunk,
        video=chunk.video[frames:],
        video_start_s=chunk.video_start_s + frames / FRAME_RATE,
        audio=chunk.audio[samples:],
        audio_start_s=chunk.audio_start_s + samples / chunk.sample_rate,
    )
