"""Picture and sound out of files, by PyAV: what a file holds, its frames in batches, its sound as one array.

Nothing is scaled and no frame rate is changed here; what does not fit is refused elsewhere, before any work.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.codecs.mel import resample
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import opened


class PictureInfo(NamedTuple):
    """What a file's picture is; an image is one frame, whose rate says nothing."""

    height: int
    width: int
    frames: int
    rate: float


def has_sound(path: AnyPath) -> bool:
    """Say whether a file has sound.

    Raises:
        ValueError: if the file cannot be read.
    """
    with opened(path) as file:
        return bool(file.streams.audio)


def read_picture_info(path: AnyPath) -> PictureInfo:
    """Look at a file's picture; its frames are counted, not decoded.

    Raises:
        ValueError: if the file cannot be read or has no picture.
    """
    with opened(path) as file:
        if not file.streams.video:
            raise ValueError(f"{os.fspath(path)}: has no picture")
        video = file.streams.video[0]
        frames = sum(1 for packet in file.demux(video) if packet.size)
        return PictureInfo(video.height, video.width, frames, float(video.average_rate or 0))


def read_frames(path: AnyPath, batches: Iterator[int]) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
    """Read frames in batches of given sizes, RGB; ends with the batches.

    Raises:
        ValueError: if the file cannot be read or ends within a batch.
    """
    with opened(path) as file:
        frames = (frame.to_ndarray(format="rgb24") for frame in file.decode(video=0))
        for size in batches:
            batch = [frame for _, frame in zip(range(size), frames, strict=False)]
            if len(batch) < size:
                raise ValueError(f"{os.fspath(path)}: the picture ends {size - len(batch)} frames early")
            yield np.stack(batch)


def read_sound(path: AnyPath, rate: int, channels: int) -> Float32[np.ndarray, "samples channels"]:
    """Read a file's sound at a rate; mono is spread over all channels.

    Raises:
        ValueError: if the file cannot be read, has no sound, or has another number of channels.
    """
    import av

    with opened(path) as file:
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
