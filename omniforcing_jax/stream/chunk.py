"""The contract between a stream and its consumers: chunks of picture and sound on the host.

A stream is an iterator of chunks. A file writer, a web player and the benchmark see nothing else: no latents, no device
arrays, no codec. Functions that need chunks alone are here too.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.layout import FRAME_RATE


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The picture and the sound that one block adds.

    Each of the two has its own start. The vocoder looks ahead, so the sound of a block comes a little later than its
    picture, and an early chunk may have no samples at all.

    Attributes:
        index: Block that the chunk comes from. `close` may add one chunk without frames.
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


def make_chunks(
    index: int,
    video: UInt8[np.ndarray, "B F H W 3"],
    first_frame: int,
    audio: Float32[np.ndarray, "B samples channels"],
    first_sample: int,
    sample_rate: int,
) -> tuple[Chunk, ...]:
    """Make the chunk of every row of a block, with its times.

    Args:
        index: The block.
        video: Frames, RGB.
        first_frame: Number of the first frame in the stream.
        audio: Samples in [-1, 1].
        first_sample: Number of the first sample in the stream. Samples with negative numbers are cut off.
        sample_rate: Samples per second.
    """
    return tuple(
        Chunk(
            index=index,
            video=frames,
            video_start_s=first_frame / FRAME_RATE,
            audio=samples[max(0, -first_sample) :],
            audio_start_s=max(0, first_sample) / sample_rate,
            sample_rate=sample_rate,
        )
        for frames, samples in zip(video, audio, strict=True)
    )


def join_chunks(chunks: Sequence[Chunk]) -> tuple[UInt8[np.ndarray, "F H W 3"], Float32[np.ndarray, "samples 2"]]:
    """Join consecutive chunks, at least one, to the picture and the sound of one clip."""
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
