"""Open media files with PyAV: one file and nothing beside it, its pictures as viewers show them, its sound in time.

Every fault of a file becomes one line, when it is opened or while it is read. What a picture or a sound is used for is
no matter of this file.
"""

import itertools
import os
import struct
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.io.atomic_write import AnyPath

LARGEST_PICTURE = 2**26  # pixels; 8K has half as many. A decoder refuses a larger picture before it takes memory
OPENING_OTHERS = {  # formats that make libav open other files, devices or addresses
    *("concat", "concatf", "hls", "dash", "webm_dash_manifest", "imf", "hds", "smoothstreaming", "mlv", "vobsub"),
    *("sdp", "rtsp", "rtp", "sap", "lavfi", "avisynth", "vapoursynth"),
}
EXIF = 31  # of AVFrameSideDataType, which PyAV 18 does not know; it cannot list side data that holds one
UPRIGHT = (1, 0, 0, 1)
LONGEST_JUMP_S = 0.02  # time stamps of sound may jump ahead so far before silence is put in
LONGEST_GAP_S = 600.0  # of silence between samples, all gaps together
LONGEST_S = 24 * 3600.0  # of a sound, or from a picture's first frame to its last
LOUDEST = 1000.0  # of a sample; 1 is full scale, 1000 is 60 dB above it
RATES = (1000, 768_000)  # lowest and highest sample rate


def as_url(path: AnyPath) -> str:
    """Return a file's address for libav, which would take `a:b.mp4` for a protocol `a`."""
    return f"file:{os.path.abspath(os.fspath(path))}"


@cache
def _allowed_formats() -> str:
    import av

    return ",".join(sorted(set(av.formats_available) - OPENING_OTHERS))


@contextmanager
def open_media(path: AnyPath) -> Iterator[Any]:
    """Open a file as PyAV's input container.

    Raises:
        ValueError: "cannot read PATH: ...", if the file cannot be opened, if it only names other files, or if libav
            fails within the block.
    """
    import av  # imported where it is used: the network runs without PyAV
    from av.error import ArgumentError, FFmpegError

    options = {"protocol_whitelist": "file", "format_whitelist": _allowed_formats(), "pattern_type": "none"}
    options["max_pixels"] = str(LARGEST_PICTURE)  # for the decoder of each stream that is tried while it is opened
    is_open = False
    try:
        with av.open(as_url(path), options=options) as file:
            is_open = True
            yield file
    except (OSError, FFmpegError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        if isinstance(error, ArgumentError) and not is_open:
            reason = "no media, or a list of other files"
        raise ValueError(f"cannot read {os.fspath(path)}: {reason}") from None


def find_picture(file: Any, path: AnyPath) -> Any | None:
    """Return the first video stream, cover art apart, ready to be decoded; None if there is none.

    Raises:
        ValueError: If no decoder knows it, or if it is too large.
    """
    from av.stream import Disposition

    stream = next((each for each in file.streams.video if not each.disposition & Disposition.attached_pic), None)
    if stream is None:
        return None
    context = _context_of(stream, path, "picture")
    if not 0 < context.width * context.height <= LARGEST_PICTURE:
        raise ValueError(f"cannot read {os.fspath(path)}: its picture has no size, or over {LARGEST_PICTURE} pixels")
    context.options = {"max_pixels": str(LARGEST_PICTURE)}
    return stream


def find_sound(file: Any, path: AnyPath) -> Any | None:
    """Return the first audio stream; None if there is none.

    Raises:
        ValueError: If no decoder knows it, or if its sample rate is none that sound has.
    """
    stream = next(iter(file.streams.audio), None)
    if stream is None:
        return None
    context = _context_of(stream, path, "sound")
    if not RATES[0] <= context.sample_rate <= RATES[1] or not context.layout.nb_channels:
        raise ValueError(
            f"cannot read {os.fspath(path)}: its sound has {context.layout.nb_channels} channels "
            f"at {context.sample_rate} Hz; rates are from {RATES[0]} to {RATES[1]}"
        )
    return stream


def _context_of(stream: Any, path: AnyPath, what: str) -> Any:
    if stream.codec_context is None:
        raise ValueError(f"cannot read {os.fspath(path)}: no decoder is known for its {what}")
    return stream.codec_context


class Orientation(NamedTuple):
    """How a stored picture is shown.

    Attributes:
        matrix: (a, b, c, d): the pixel in column x and row y is shown in column a x + c y and row b x + d y.
        pixel_aspect: Width of a stored pixel over its height.
    """

    matrix: tuple[int, int, int, int] = UPRIGHT
    pixel_aspect: Fraction = Fraction(1)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a stored picture as it is shown."""
        width = max(1, round(width * self.pixel_aspect))
        return (width, height) if self.matrix[1] else (height, width)

    def show(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Return a stored picture as it is shown."""
        height, width = pixels.shape[:2]
        pixels = resize(pixels, height, max(1, round(width * self.pixel_aspect)))
        a, b, c, d = self.matrix
        turned = pixels.transpose(1, 0, 2) if b else pixels
        columns, rows = (c, b) if b else (a, d)
        return turned[:: rows or 1, :: columns or 1]


def read_orientation(frame: Any, stream: Any, path: AnyPath) -> Orientation:
    """Read from a decoded frame how it is shown: from EXIF, or from a container's display matrix.

    Raises:
        ValueError: If it is turned by anything else than quarters.
    """
    data = _display_matrix(frame, stream)
    a, b, _, c, d, *_ = (1, 0, 0, 0, 1) if data is None else (each / 2**16 for each in struct.unpack("=9i", data))
    kinds = ((abs(a), abs(d), b, c), (abs(b), abs(c), a, d))
    if not any(abs(x - 1) < 1e-3 and abs(y - 1) < 1e-3 and abs(p) + abs(q) < 1e-3 for x, y, p, q in kinds):
        raise ValueError(f"cannot read {os.fspath(path)}: its picture is turned by no multiple of 90 degrees")
    return Orientation((round(a), round(b), round(c), round(d)), Fraction(stream.sample_aspect_ratio or 1))


def _display_matrix(frame: Any, stream: Any) -> bytes | None:
    """Return a frame's display matrix: nine numbers of 32 bits."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        data = _without_exif(frame, stream).side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def _without_exif(frame: Any, stream: Any) -> Any:
    from av.filter import Graph

    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream), graph.add("sidedata", f"mode=delete:type={EXIF}"), graph.add("buffersink")
    ).configure()
    graph.push(frame)
    return graph.pull()


def resize(pixels: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Scale a picture. One that has the size already is returned as it is."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width=width, height=height, interpolation="LANCZOS").to_ndarray()


class SoundClock:
    """Counts samples, and finds from time stamps where silence is missing between them.

    Args:
        path: The file, for messages.
        rate: Samples per second.
        start_s: Time of the first sample; None takes that of the first time stamp.
    """

    def __init__(self, path: AnyPath, rate: int, start_s: float | None = None) -> None:
        self.start_s = start_s
        self._path, self._rate, self._heard, self._silent = path, rate, 0, 0

    def missing(self, time_s: float | None) -> int:
        """Return the samples of silence that belong before those of a time stamp, which may be None.

        Returns:
            A negative number for samples that come so much before the beginning.

        Raises:
            ValueError: If the silence, or all of the sound, would be too long to be meant.
        """
        if self.start_s is None:
            self.start_s = time_s or 0.0
        heard_s = self._heard / self._rate
        ahead = 0.0 if time_s is None else time_s - self.start_s - heard_s
        is_off = ahead > LONGEST_JUMP_S or (ahead < -LONGEST_JUMP_S and not self._heard)
        missing = round(ahead * self._rate) if is_off else 0
        self._silent += max(0, missing)
        if self._silent > LONGEST_GAP_S * self._rate or heard_s + ahead > LONGEST_S:
            raise ValueError(
                f"cannot read {os.fspath(self._path)}: its sound has a gap of {ahead:.0f} s at {heard_s:.0f} s; gaps "
                f"of {LONGEST_GAP_S:.0f} s in all and sounds of {LONGEST_S:.0f} s are the longest"
            )
        return missing

    def count(self, samples: int) -> None:
        """Count samples that were heard, silence included."""
        self._heard += samples


def check_samples(samples: np.ndarray, path: AnyPath) -> None:
    """Refuse samples that are no sound.

    Raises:
        ValueError: If one is not finite, or more than 60 dB above full scale.
    """
    if not np.all(np.abs(samples) <= LOUDEST):
        where = f"cannot read {os.fspath(path)}"
        raise ValueError(f"{where}: its sound has samples that are not finite, or beyond {LOUDEST:g} times full scale")


class SoundPiece(NamedTuple):
    """Samples float32 [n, channels], full scale at 1, and their rate."""

    samples: Float32[np.ndarray, "samples channels"]
    rate: int


def read_pieces(
    path: AnyPath, channels: int, rates: Collection[int] = (), start_s: float | None = None
) -> Generator[SoundPiece, None, None]:
    """Decode a file's sound piece by piece, with silence where its time stamps leave gaps.

    Mono is copied to all channels. More channels than asked for are mixed down by libswresample, so that they stay
    within full scale.

    Args:
        path: The file.
        channels: Channels to return: 1 or 2.
        rates: Rates to return; a sound of another rate is resampled to the last one. Empty keeps every rate.
        start_s: Time of the first sample in the file's clock. What is earlier is left out, and silence is put in front
            of a sound that begins later. None begins with the sound.

    Raises:
        ValueError: If the file cannot be read or has no sound.
    """
    with open_media(path) as file:
        source, clock = find_sound(file, path), None
        if source is None:
            raise ValueError(f"{os.fspath(path)}: has no sound")
        for part in _mix(file.decode(source), path, channels, rates):
            samples = np.broadcast_to(part.to_ndarray().T, (part.samples, channels))
            check_samples(samples, path)
            clock = clock or SoundClock(path, part.sample_rate, start_s)
            missing = clock.missing(part.time)
            silence = np.zeros((max(0, missing), channels), np.float32)
            whole = np.concatenate([silence, samples[max(0, -missing) :]])
            clock.count(len(whole))
            yield SoundPiece(whole, part.sample_rate)


def _mix(frames: Iterator[Any], path: AnyPath, channels: int, rates: Collection[int]) -> Iterator[Any]:
    """Bring decoded frames to float32 of one rate and one layout; mono stays mono."""
    first = next(frames, None)
    if first is None:
        return
    layout = "stereo" if channels > 1 and first.layout.nb_channels > 1 else "mono"
    rate = first.sample_rate if not rates or first.sample_rate in rates else [*rates][-1]
    graph = _resampler(first, rate, layout)
    for frame in itertools.chain([first], frames, [None]):
        if frame is not None and _form(frame) != _form(first):
            raise ValueError(f"cannot read {os.fspath(path)}: its sound changes from {_form(first)} to {_form(frame)}")
        graph.push(frame)
        yield from _pull(graph)


def _form(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _resampler(frame: Any, rate: int, layout: str) -> Any:
    """Make libswresample's graph for frames like this one; full scale stays full scale where channels are mixed."""
    from av.filter import Graph

    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name, time_base=frame.time_base
    )
    mixed = graph.add("aresample", f"{rate}:rematrix_maxval=1.0:ochl={layout}:osf=fltp")
    graph.link_nodes(source, mixed, graph.add("abuffersink")).configure()
    return graph


def _pull(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (BlockingIOError, EOFError):
            return
