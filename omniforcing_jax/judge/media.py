"""Any media file, read once from start to end with its time stamps; what is kept are numbers, never frames."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import opened
from omniforcing_jax.judge.picture import Picture, Watcher
from omniforcing_jax.judge.sound import RATE, Listener, Sound

if TYPE_CHECKING:
    import av

USUAL_RATE = 24  # frames per second of a file that does not say
GAP = 0.02  # seconds that time stamps of sound may jump ahead before silence is put in


@dataclass(frozen=True, kw_only=True)
class Media:
    """A file as it was seen and heard; a stream that it lacks is None.

    Attributes:
        name: Of the file.
        picture: Its first video stream.
        sound: Its first audio stream.
        undecodable: Packets that nothing could be made of.
    """

    name: str
    picture: Picture | None
    sound: Sound | None
    undecodable: int = 0

    def __repr__(self) -> str:
        picture, sound = self.picture, self.sound
        seen = "no picture" if picture is None else f"{len(picture.times)} frames of {picture.height}x{picture.width}"
        heard = "no sound" if sound is None else f"{sound.channels} channels at {sound.sample_rate} Hz"
        return f"Media({self.name!r}, {self.stop_s - self.start_s:.2f} s, {seen}, {heard})"

    @property
    def start_s(self) -> float:
        """Time at which the earlier stream begins."""
        return min(
            float("inf") if self.picture is None else float(self.picture.times[0]),
            float("inf") if self.sound is None else self.sound.start_s,
        )

    @property
    def stop_s(self) -> float:
        """Time at which the later stream ends."""
        return max(
            -float("inf") if self.picture is None else self.picture.stop_s,
            -float("inf") if self.sound is None else self.sound.stop_s,
        )


def check_readable(path: AnyPath) -> float | None:
    """Refuse a file that cannot be judged, before any work is done for it; returns its length in seconds, if it says.

    Raises:
        ValueError: naming the path, if it cannot be opened, is no media file, or has neither picture nor sound.
    """
    import av

    with opened(path) as file:
        if not (file.streams.video or file.streams.audio):
            raise ValueError(f"cannot judge {path}: it has neither picture nor sound")
        return None if file.duration is None else file.duration / av.time_base


class _Clock:
    """Times of frames: their own, or one frame after the last where a time stamp is missing or does not rise."""

    def __init__(self, stream: "av.VideoStream | None") -> None:
        rate = None if stream is None else stream.average_rate or stream.guessed_rate
        self._frame_s = 1 / float(rate or USUAL_RATE)
        self.now_s = -float("inf")

    def time_of(self, frame: "av.VideoFrame") -> float:
        """Return when the next frame is shown, in seconds."""
        if frame.time is not None and frame.time > self.now_s:
            self.now_s = frame.time
        else:
            self.now_s = max(self.now_s + self._frame_s, 0.0)
        return self.now_s


class _Ear:
    """Brings audio frames to 16 kHz and to their places in time."""

    def __init__(self, channels: int) -> None:
        import av

        self._resampler = av.AudioResampler(format="fltp", rate=RATE)
        self._listener = Listener(channels)
        self._heard = 0  # samples at 16 kHz
        self._start_s: float | None = None

    def hear(self, frame: "av.AudioFrame | None") -> None:
        """Take the next frame; None is the end."""
        for part in self._resampler.resample(frame):
            if self._start_s is None:
                self._start_s = part.time or 0.0
            ahead = 0.0 if part.time is None else part.time - self._start_s - self._heard / RATE
            if ahead > GAP:
                self._take(np.zeros((len(part.layout.channels), round(ahead * RATE)), np.float32))
            self._take(part.to_ndarray())

    def _take(self, samples: np.ndarray) -> None:
        self._heard += samples.shape[1]
        self._listener.hear(samples)

    def sound(self, sample_rate: int) -> Sound | None:
        """Return what was heard of a file of that rate."""
        if self._start_s is None:
            return None
        self.hear(None)
        return self._listener.sound(sample_rate=sample_rate, start_s=self._start_s)


def read_media(path: AnyPath, progress: Callable[[float], None] = lambda seconds: None) -> Media:
    """Watch and listen to a file; packets that cannot be decoded are counted and left out.

    Args:
        path: What libav can open.
        progress: Called with the time of each frame.

    Raises:
        ValueError: naming the path, if it cannot be opened, or nothing in it can be judged.
    """
    import av
    from av.error import FFmpegError

    with opened(path) as file:
        video, audio = next(iter(file.streams.video), None), next(iter(file.streams.audio), None)
        watcher, clock = Watcher(), _Clock(video)
        ear = None if audio is None else _Ear(audio.codec_context.channels)
        undecodable = 0
        if video is not None:
            video.thread_type = "AUTO"
        for packet in file.demux([stream for stream in (video, audio) if stream is not None]):
            try:
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame):
                        watcher.see(frame, clock.time_of(frame))
                        progress(clock.now_s)
                    elif ear is not None and isinstance(frame, av.AudioFrame):
                        ear.hear(frame)
            except (FFmpegError, ValueError):
                undecodable += 1
        picture = watcher.picture()
        sound = None if ear is None or audio is None else ear.sound(audio.codec_context.sample_rate)
    if picture is None and sound is None:
        raise ValueError(f"cannot judge {path}: nothing in it could be decoded")
    return Media(name=Path(path).name, picture=picture, sound=sound, undecodable=undecodable)


def decode_pictures(path: AnyPath) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frames of the first video stream as RGB, of the first one's size; what cannot be decoded is skipped."""
    import av
    from av.error import FFmpegError

    with opened(path) as file:
        size: dict[str, int] = {}
        for packet in file.demux(video=0):
            try:
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame):
                        size = size or {"width": frame.width, "height": frame.height}
                        yield frame.reformat(**size, format="rgb24").to_ndarray()
            except FFmpegError:
                continue
