"""Read picture and sound of files as a stream takes them: upright, at its frame rate and size, from the same second on.

Frames are put where their time stamps say: whatever a file's rate, and also if it varies, a frame is shown until the
next one begins. `condition.py` refuses files that do not fit, before any work.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import (
    LONGEST_S,
    find_picture,
    find_sound,
    open_media,
    read_orientation,
    read_pieces,
    resize,
)
from omniforcing_jax.layout import FRAME_RATE

Fit = Literal["crop", "pad", "stretch"]
"""How a picture of another size is brought to the stream's: its middle, the whole of it on black, or distorted."""

Pixels = UInt8[np.ndarray, "_ _ 3"]


class PictureInfo(NamedTuple):
    """A file's picture.

    Attributes:
        height: Pixels, as it is shown.
        width: Pixels, as it is shown.
        frames: Number of frames at the stream's frame rate; an image is one.
        rate: Mean frames per second of the file; 0 for an image.
        start_s: Time of the first frame in the file's clock.
    """

    height: int
    width: int
    frames: int
    rate: float
    start_s: float = 0.0


def has_sound(path: AnyPath) -> bool:
    """Return whether a file has sound.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_media(path) as file:
        return find_sound(file, path) is not None


def read_picture_info(path: AnyPath) -> PictureInfo:
    """Read size, length and rate of a file's picture. Only its first frame is decoded.

    Raises:
        ValueError: If the file cannot be read or has no picture.
    """
    with open_media(path) as file:
        video = _need_picture(file, path)
        first = next(file.decode(video), None)
        if first is None:
            raise ValueError(f"cannot read {os.fspath(path)}: nothing in its picture could be decoded")
        height, width = read_orientation(first, video, path).size(first.height, first.width)
    with open_media(path) as file:
        times, stop_s = _packet_times(file, _need_picture(file, path), path)
    length = stop_s - times[0]
    is_image = len(times) == 1
    frames = 1 if is_image else max(1, math.floor(length * FRAME_RATE + 0.5))
    return PictureInfo(height, width, frames, 0.0 if is_image else len(times) / length, times[0])


def _need_picture(file: Any, path: AnyPath) -> Any:
    video = find_picture(file, path)
    if video is None:
        raise ValueError(f"{os.fspath(path)}: has no picture")
    return video


def _packet_times(file: Any, video: Any, path: AnyPath) -> tuple[list[float], float]:
    """Return the times of all frames in order, and the end of the last one, in seconds. Nothing is decoded."""
    packets = [packet for packet in file.demux(video) if packet.size and not packet.is_discard]
    usual = 1 / float(video.average_rate or video.guessed_rate or FRAME_RATE)
    stamps = [packet.pts if packet.pts is not None else packet.dts for packet in packets]
    unit = float(video.time_base or 0)
    times = sorted(stamp * unit for stamp in stamps if stamp is not None)
    if len(times) < len(packets) or not unit:
        times = [i * usual for i in range(len(packets))]
    if not times or times[-1] - times[0] > LONGEST_S:
        rule = f"must have frames, over at most {LONGEST_S:.0f} s by their time stamps"
        raise ValueError(f"cannot read {os.fspath(path)}: its picture {rule}")
    lasts = {round(stamp * unit, 9): packet.duration for stamp, packet in zip(stamps, packets, strict=True) if stamp}
    last = float((lasts.get(round(times[-1], 9)) or 0) * unit)
    return times, times[-1] + (last or usual)


def read_frames(
    path: AnyPath,
    batches: Iterator[int],
    size: tuple[int, int] | None = None,
    fit: Fit | None = None,
    start_s: float | None = None,
) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
    """Read frames as RGB, at the stream's frame rate, in batches of these sizes; stop after the last batch.

    Args:
        path: The file.
        batches: Frames of each batch.
        size: Height and width to return; None is that of the first frame.
        fit: How frames of another size are brought to it; None refuses them.
        start_s: Time of the first frame to return, in the file's clock; None begins with the picture.

    Raises:
        ValueError: If the file cannot be read, ends within a batch, or has a frame of another size.
    """
    with open_media(path) as file:
        video = _need_picture(file, path)
        if start_s is not None:
            file.seek(max(0, math.floor(start_s / video.time_base)), stream=video)  # to a key frame before it
        frames = _convert(_hold(file.decode(video), start_s), video, path, size, fit)
        for count in batches:
            batch = [frame for _, frame in zip(range(count), frames, strict=False)]
            if len(batch) < count:
                raise ValueError(f"{os.fspath(path)}: the picture ends {count - len(batch)} frames early")
            yield np.stack(batch)


def _hold(frames: Iterator[Any], first_s: float | None) -> Iterator[Any]:
    """Repeat and leave out frames, so that they are `FRAME_RATE` per second: each until the next one begins."""
    count, held, start_s, stop_s, last_s = 0, None, first_s, 0.0, -math.inf
    for frame in frames:
        time_s = last_s + 1 / FRAME_RATE if frame.time is None else frame.time
        start_s = (0.0 if time_s == -math.inf else time_s) if start_s is None else start_s
        last_s = max(time_s, start_s)
        while held is not None and last_s - start_s > (count + 0.5) / FRAME_RATE:
            yield held
            count += 1
        held = frame
        stop_s = last_s - start_s + float((frame.duration or 0) * (frame.time_base or 0) or 1 / FRAME_RATE)
    while held is not None and (not count or stop_s > (count + 0.5) / FRAME_RATE):
        yield held
        count += 1


def _convert(
    frames: Iterator[Any], video: Any, path: AnyPath, size: tuple[int, int] | None, fit: Fit | None
) -> Iterator[Pixels]:
    """Turn decoded frames into upright pixels of one size; a frame that is repeated is converted once."""
    last, pixels = None, None
    for frame in frames:
        if pixels is None or frame is not last:
            shown = read_orientation(frame, video, path).show(frame.to_ndarray(format="rgb24"))
            size = size or (shown.shape[0], shown.shape[1])
            pixels = fit_picture(shown, size, fit, os.fspath(path))
        last = frame
        yield pixels


def fit_picture(pixels: Pixels, size: tuple[int, int], fit: Fit | None, name: str) -> Pixels:
    """Bring a picture to a size, in height and width.

    Raises:
        ValueError: If it has another size and `fit` is None; has `name`.
    """
    (height, width), (rows, columns) = pixels.shape[:2], size
    if (height, width) == size:
        return pixels
    if fit is None:
        raise ValueError(f"{name}: has a frame of {width}x{height} pixels among those of {columns}x{rows}")
    if fit == "stretch":
        return resize(pixels, rows, columns)
    if fit == "crop":
        scale = max(rows / height, columns / width)
        return resize(_middle(pixels, round(rows / scale), round(columns / scale)), rows, columns)
    scale = min(rows / height, columns / width)
    inner = resize(pixels, _within(round(height * scale), rows), _within(round(width * scale), columns))
    page = np.zeros((rows, columns, 3), np.uint8)
    _middle(page, *inner.shape[:2])[:] = inner
    return page


def _within(size: int, most: int) -> int:
    return min(max(size, 1), most)


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return a view of the middle of a picture, within the picture and of one pixel at least."""
    height, width = _within(height, pixels.shape[0]), _within(width, pixels.shape[1])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def read_sound(
    path: AnyPath, rate: int, channels: int, at_most_s: int | float = LONGEST_S, start_s: float | None = None
) -> Float32[np.ndarray, "samples {channels}"]:
    """Read a file's sound, resampled to `rate`. Mono is copied to all channels, and more channels are mixed down.

    Args:
        path: The file.
        rate: Samples per second to return.
        channels: Channels to return.
        at_most_s: Seconds to read; what follows is not decoded.
        start_s: Time of the first sample in the file's clock; None begins with the sound.

    Raises:
        ValueError: If the file cannot be read, has no sound, or samples that are none.
    """
    from omniforcing_jax.codecs.mel import resample  # brings JAX along, which pictures do not need

    pieces, seconds, source_rate = [np.zeros((0, channels), np.float32)], 0.0, rate
    with contextlib.closing(read_pieces(path, channels, start_s=start_s)) as parts:
        for samples, source_rate in parts:
            pieces.append(samples)
            seconds += len(samples) / source_rate
            if seconds >= at_most_s:
                break
    return resample(np.concatenate(pieces), source_rate, rate)[: math.ceil(at_most_s * rate)]
