"""Read picture and sound of files with PyAV: sizes and rates, frames in batches, sound as one array.

Nothing is scaled, and frame rates are not changed. `condition.py` refuses files that do not fit, before any work.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.codecs.mel import resample
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import open_media


class PictureInfo(NamedTuple):
    """Size, length and frame rate of a file's picture. An image is one frame, whose rate has no meaning."""

    height: int
    width: int
    frames: int
    rate: float


def has_sound(path: AnyPath) -> bool:
    """Return whether a file has sound.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_media(path) as file:
        return bool(file.streams.audio)


def read_picture_info(path: AnyPath) -> PictureInfo:
    """Read size, length and rate of a file's picture. Its frames are counted, not decoded.

    Raises:
        ValueError: If the file cannot be read or has no picture.
    """
    with open_media(path) as file:
        if not file.streams.video:
            raise ValueError(f"{os.fspath(path)}: has no picture")
        video = file.streams.video[0]
        frames = sum(1 for packet in file.demux(video) if packet.size)
        return PictureInfo(video.height, video.width, frames, float(video.average_rate or 0))


def read_frames(path: AnyPath, batches: Iterator[int]) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
    """Read frames as RGB in batches of these sizes, and stop after the last batch.

    Raises:
        ValueError: If the file cannot be read or ends within a batch.
    """
    with open_media(path) as file:
        frames = (frame.to_ndarray(format="rgb24") for frame in file.decode(video=0))
        for size in batches:
            batch = [frame for _, frame in zip(range(size), frames, strict=False)]
            if len(batch) < size:
                raise ValueError(f"{os.fspath(path)}: the picture ends {size - len(batch)} frames early")
            yield np.stack(batch)


def read_sound(path: AnyPath, rate: int, channels: int) -> Float32[np.ndarray, "samples channels"]:
    """Read a file's sound, resampled to `rate`. Mono is copied to all channels.

    Raises:
        ValueError: If the file cannot be read, has no sound, or has another number of channels.
    """
    import av

    with open_media(path) as file:
        if not file.streams.audio:
            raise ValueError(f"{os.fspath(path)}: has no sound")
        source = file.streams.audio[0]
        to_float = av.AudioResampler(format="fltp", layout=source.layout, rate=source.rate)
        pieces = [piece.to_ndarray() for frame in file.decode(source) for piece in to_float.resample(frame)]
        found, source_rate = source.channels, source.rate
    if found not in (1, channels):
        raise ValueError(f"{os.fspath(path)}: has {found} channels of sound; must be 1 or {channels}")
    waveform = np.concatenate(pieces, axis=1).T if pieces else np.zeros((0, found), np.float32)
    return resample(np.broadcast_to(waveform, (len(waveform), channels)), source_rate, rate)
