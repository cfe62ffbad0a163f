"""A clip in memory, its sound beginning with its picture: joined from a stream's chunks, or read from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from omniforcing_jax.io.media_file import open_media
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.stream.chunk import Chunk, join_chunks


class Film(NamedTuple):
    """Picture and sound of a clip.

    Attributes:
        video: Uint8 [F, S, S, 3], RGB, at 24 frames per second.
        audio: Float32 [samples, 2] in [-1, 1].
        sample_rate: Samples per second.
    """

    video: np.ndarray
    audio: np.ndarray
    sample_rate: int


def join_film(chunks: Sequence[Chunk]) -> Film:
    """Join consecutive chunks to a clip whose sound begins with its picture."""
    video, audio = join_chunks(chunks)
    rate = chunks[0].sample_rate
    late_s = next((chunk.audio_start_s for chunk in chunks if len(chunk.audio)), 0.0) - chunks[0].video_start_s
    return Film(video, _aligned(audio, round(late_s * rate)), rate)


def read_film(path: Path) -> Film:
    """Decode a video file by PyAV; sound is aligned to the picture by their time stamps.

    Raises:
        ValueError: It cannot be decoded, is not square at 24 frames per second, or lacks picture or stereo sound.
    """
    import av

    with open_media(path) as file:
        if not file.streams.video or not file.streams.audio:
            raise ValueError(f"{path}: needs a picture and a sound")
        rate = file.streams.video[0].average_rate
        pictures = list(file.decode(video=0))
    with open_media(path) as file:
        sounds = list(file.decode(audio=0))
    if not pictures or not sounds:
        raise ValueError(f"{path}: needs a picture and a sound")
    first, sound = pictures[0], sounds[0]
    if rate != FRAME_RATE or first.width != first.height or sound.layout.nb_channels != 2:
        raise ValueError(f"{path}: needs a square picture at {FRAME_RATE} frames/s and stereo sound")
    video = np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=sound.sample_rate)
    planes = [part.to_ndarray() for each in sounds for part in resampler.resample(each)]
    late_s = (sound.time or 0.0) - (first.time or 0.0)
    audio = _aligned(np.concatenate(planes, axis=1).T, round(late_s * sound.sample_rate))
    return Film(video, audio, sound.sample_rate)


def _aligned(audio: np.ndarray, samples: int) -> np.ndarray:
    """Let sound that begins `samples` after the picture begin with it, by silence or by a cut."""
    return np.pad(audio, ((samples, 0), (0, 0))) if samples > 0 else audio[-samples:]
