"""Write chunks to a file that can be played while it grows: H.264 and AAC in fragmented MP4, with PyAV.

Every block is one GOP without B-frames, and so a fragment of its own. A fragment reaches the disk when the key frame of
the next block arrives. A killed process leaves a file that plays to its last finished fragment. A closed file, also
after an error or Ctrl-C, plays to its last block. The file is therefore written under its own name from the start.
Where the disk is full, the part of a fragment that still found room is cut off again: players stumble over it.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import as_url
from omniforcing_jax.stream.chunk import Chunk

_CONTAINER_OPTIONS = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
# zerolatency has no look-ahead and no frame threads, so the packets of a block come out with the block
_VIDEO_OPTIONS = {"preset": "veryfast", "tune": "zerolatency", "crf": "16", "bf": "0", "sc_threshold": "0"}
KINDS = (".mp4", ".m4v", ".mov")
_AUDIO_BITS_PER_S = 128_000
_LONGEST_GOP = 1 << 20  # key frames are set by hand, at the first frame of every block
_BT709 = 1  # of AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic alike
_LIMITED_RANGE = 1  # of AVColorRange: "MPEG"
_YUV = {"dst_colorspace": _BT709, "dst_color_range": _LIMITED_RANGE}


def check_kind(path: AnyPath) -> None:
    """Refuse an output whose name says another container than the one that is written. Devices and pipes are free.

    Raises:
        ValueError: If the name ends in anything but `KINDS`.
    """
    place = Path(path)
    if place.suffix.lower() not in KINDS and (place.is_file() or not place.exists()):
        raise ValueError(f"cannot write {path}: must end in {', '.join(KINDS)}, because it becomes a file of that kind")


class ChunkEncoder:
    """H.264 and AAC of chunks, as packets for the container that has the two streams.

    It keeps the times of the chunks: if the first chunk is from the middle of a stream, the packets begin at that time.

    Args:
        file: A container of PyAV, open for writing. The two streams are added to it.
        height: Height of the picture in pixels, even.
        width: Width of the picture in pixels, even.
        frame_rate: Frames per second.
        sample_rate: Samples per second of the stereo sound.
    """

    def __init__(self, file: Any, *, height: int, width: int, frame_rate: int, sample_rate: int) -> None:
        from av.video.reformatter import VideoReformatter

        self.video = _add_video(file, height, width, frame_rate)
        self.audio: Any = file.add_stream("aac", rate=sample_rate, layout="stereo")
        self.audio.bit_rate = _AUDIO_BITS_PER_S
        self._to_yuv = VideoReformatter()  # one for all frames: each frame's own would make its tables again
        self._frame_time = Fraction(1, frame_rate)  # not the stream's own time base: the container changes that
        self._frames = self._samples = 0
        self._is_empty = True

    def encode(self, chunk: Chunk) -> Iterator[Any]:
        """Encode a chunk: yield the packets that are ready, those of the picture first."""
        if self._is_empty:
            self._frames = round(chunk.video_start_s / self._frame_time)
            self._samples = round(chunk.audio_start_s * chunk.sample_rate)
            self._is_empty = False
        yield from self._encode_video(chunk.video)
        yield from self._encode_audio(chunk.audio)

    def flush(self) -> Iterator[Any]:
        """Yield the packets that the encoders still hold."""
        for stream in (self.video, self.audio):
            yield from stream.encode(None)

    def _encode_video(self, video: UInt8[np.ndarray, "F H W 3"]) -> Iterator[Any]:
        import av
        from av.video.frame import PictureType

        for offset, pixels in enumerate(video):
            rgb = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = self._to_yuv.reformat(rgb, format="yuv420p", **_YUV)
            frame.pts, frame.time_base = self._frames, self._frame_time
            frame.pict_type = PictureType.I if offset == 0 else PictureType.NONE
            self._frames += 1
            yield from self.video.encode(frame)

    def _encode_audio(self, audio: Float32[np.ndarray, "samples 2"]) -> Iterator[Any]:
        import av

        if not len(audio):
            return
        planes = np.ascontiguousarray(audio.T, np.float32)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = self.audio.rate, self._samples
        frame.time_base = Fraction(1, self.audio.rate)
        self._samples += len(audio)
        yield from self.audio.encode(frame)


class Mp4Writer:
    """A growing MP4 file; a context manager that closes it in a playable state.

    Args:
        path: The file; replaced if it exists.
        height: Height of the picture in pixels, even.
        width: Width of the picture in pixels, even.
        frame_rate: Frames per second.
        sample_rate: Samples per second of the stereo sound.
    """

    def __init__(self, path: AnyPath, *, height: int, width: int, frame_rate: int, sample_rate: int) -> None:
        import av  # imported where it is used: the network runs without PyAV

        self._path, self._whole_bytes = path, _size_of(path)
        kind = "mov" if Path(path).suffix.lower() == ".mov" else "mp4"
        self._file = av.open(as_url(path), "w", format=kind, container_options=_CONTAINER_OPTIONS)
        self._encoder = ChunkEncoder(
            self._file, height=height, width=width, frame_rate=frame_rate, sample_rate=sample_rate
        )

    def write(self, chunk: Chunk) -> None:
        """Encode a chunk and add it to the container. Its key frame brings the block before to the disk."""
        self._mux(self._encoder.encode(chunk))
        self._whole_bytes = _size_of(self._path)

    def close(self) -> None:
        """Flush both encoders and the last fragment. If that fails, the file ends with its last whole fragment."""
        try:
            self._mux(self._encoder.flush())
            self._file.close()
        except Exception:
            with contextlib.suppress(Exception):
                self._file.close()
            if os.path.isfile(self._path):
                os.truncate(self._path, min(self._whole_bytes, _size_of(self._path)))
            raise

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            self._file.mux(packet)

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _size_of(path: AnyPath) -> int:
    """Return the bytes of a file. PyAV makes it only when something is written, which a held-back picture delays."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def _add_video(file: Any, height: int, width: int, frame_rate: int) -> Any:
    stream = file.add_stream("libx264", rate=frame_rate, options=_VIDEO_OPTIONS, height=height, width=width)
    stream.pix_fmt = "yuv420p"
    stream.time_base = Fraction(1, frame_rate)
    context = stream.codec_context
    context.gop_size = _LONGEST_GOP
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


class Overlapped:
    """A consumer that works on one chunk, in its own thread, while the next one is made.

    At most one chunk is being consumed and one waits. Memory stays bounded, and a slow consumer slows the stream down.
    An error of the consumer is raised at the next call or at `wait`.
    """

    def __init__(self, consume: Callable[[Chunk], None]) -> None:
        self._consume = consume
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def __call__(self, chunk: Chunk) -> None:
        """Wait for the chunk before, then start to consume this one."""
        self.wait()
        self._pending = self._pool.submit(self._consume, chunk)

    def wait(self) -> None:
        """Wait until every chunk is consumed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def __enter__(self) -> "Overlapped":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def write_mp4(
    path: AnyPath,
    video: UInt8[np.ndarray, "F H W 3"],
    audio: Float32[np.ndarray, "samples 2"],
    *,
    frame_rate: int,
    sample_rate: int,
) -> None:
    """Write a whole clip, one fragment per second."""
    chunks: Iterable[Chunk] = (
        Chunk(
            index=second,
            video=video[second * frame_rate :][:frame_rate],
            video_start_s=float(second),
            audio=audio[second * sample_rate :][:sample_rate],
            audio_start_s=float(second),
            sample_rate=sample_rate,
        )
        for second in range(-(-len(video) // frame_rate))
    )
    with Mp4Writer(
        path, height=video.shape[1], width=video.shape[2], frame_rate=frame_rate, sample_rate=sample_rate
    ) as out:
        for chunk in chunks:
            out.write(chunk)
