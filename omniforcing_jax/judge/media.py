"""Any media file, read once from start to end with its time stamps. Numbers are kept, frames are not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import (
    LONGEST_S,
    Orientation,
    SoundClock,
    check_samples,
    find_picture,
    find_sound,
    open_media,
    read_orientation,
)
from omniforcing_jax.judge.picture import Picture, Watcher
from omniforcing_jax.judge.sound import PIECE, RATE, Listener, Sound

if TYPE_CHECKING:
    import av

USUAL_RATE = 24  # frames per second, for a file that has no frame rate


@dataclass(frozen=True, kw_only=True)
class Media:
    """The measurements of a file. A stream that the file lacks is None.

    Attributes:
        path: The file.
        picture: Its first video stream.
        sound: Its first audio stream.
        undecodable: Number of packets that could not be decoded.
    """

    path: Path
    picture: Picture | None
    sound: Sound | None
    undecodable: int = 0

    def __repr__(self) -> str:
        picture, sound = self.picture, self.sound
        seen = "no picture" if picture is None else f"{len(picture.times)} frames of {picture.height}x{picture.width}"
        heard = "no sound" if sound is None else f"{sound.channels} channels at {sound.sample_rate} Hz"
        return f"Media({self.name!r}, {self.stop_s - self.start_s:.2f} s, {seen}, {heard})"

    @property
    def name(self) -> str:
        """Name of the file, without its folder."""
        return self.path.name

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
    """Refuse a file that cannot be judged, before any work is done for it.

    Returns:
        Length of the file in seconds; None if the file does not have it.

    Raises:
        ValueError: If it cannot be opened, is no media file, or has neither picture nor sound; names the path.
    """
    import av

    with open_media(path) as file:
        if find_picture(file, path) is None and find_sound(file, path) is None:
            raise ValueError(f"cannot judge {path}: it has neither picture nor sound")
        return None if file.duration is None else file.duration / av.time_base


class _Clock:
    """Times of frames. A time stamp that is missing or does not rise is replaced by one frame after the last."""

    def __init__(self, stream: "av.VideoStream | None", path: AnyPath) -> None:
        rate = None if stream is None else stream.average_rate or stream.guessed_rate
        self._frame_s = 1 / float(rate or USUAL_RATE)
        self.now_s = -float("inf")
        self._start_s: float | None = None
        self._path = path

    def time_of(self, frame: "av.VideoFrame") -> float:
        """Return when the next frame is shown, in seconds."""
        if frame.time is not None and frame.time > self.now_s:
            self.now_s = frame.time
        else:
            self.now_s = max(self.now_s + self._frame_s, 0.0)
        if self._start_s is None:
            self._start_s = self.now_s
        if self.now_s - self._start_s > LONGEST_S:
            length = f"its frames are {self.now_s - self._start_s:.0f} s apart"
            raise ValueError(f"cannot judge {self._path}: {length} by their time stamps, at most {LONGEST_S:.0f} s")
        return self.now_s


class _Ear:
    """Resamples audio frames to 16 kHz and puts them at their times."""

    def __init__(self, channels: int, path: AnyPath) -> None:
        import av

        self._resampler = av.AudioResampler(format="fltp", rate=RATE)
        self._listener, self._clock, self._path = Listener(channels), SoundClock(path, RATE), path
        self._form: tuple[str, str, int] | None = None

    def fits(self, frame: "av.AudioFrame") -> bool:
        """Return whether a frame has the form of the first one: damage can turn it into another."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        self._form = self._form or form
        return form == self._form

    def hear(self, frame: "av.AudioFrame | None") -> None:
        """Take the next frame; None is the end."""
        for part in self._resampler.resample(frame):
            missing = max(0, self._clock.missing(part.time))
            for begin in range(0, missing, PIECE):  # silence takes no memory at once
                self._take(np.zeros((len(part.layout.channels), min(PIECE, missing - begin)), np.float32))
            samples = part.to_ndarray()
            check_samples(samples, self._path)
            self._take(samples)

    def _take(self, samples: np.ndarray) -> None:
        self._clock.count(samples.shape[1])
        self._listener.hear(samples)

    def sound(self, sample_rate: int) -> Sound | None:
        """Return the sound that was heard, from a file of that rate."""
        if self._clock.start_s is None:
            return None
        self.hear(None)
        return self._listener.sound(sample_rate=sample_rate, start_s=self._clock.start_s)


def _decode(packet: "av.Packet", ear: _Ear | None) -> "list[av.VideoFrame | av.AudioFrame] | None":
    """Decode a packet; None if it is damaged."""
    import av
    from av.error import FFmpegError

    try:
        frames = [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame | av.AudioFrame)]
    except FFmpegError:
        return None
    sounds = [frame for frame in frames if isinstance(frame, av.AudioFrame)]
    return frames if ear is None or all(ear.fits(frame) for frame in sounds) else None


def read_media(path: AnyPath, progress: Callable[[float], None] = lambda seconds: None) -> Media:
    """Measure picture and sound of a file. Packets that cannot be decoded are counted and left out.

    Args:
        path: A file that libav can open.
        progress: Called with the time of each frame, in seconds.

    Raises:
        ValueError: If it cannot be opened, or if nothing in it can be judged; names the path.
    """
    import av

    with open_media(path) as file:
        video, audio = find_picture(file, path), find_sound(file, path)
        watcher, clock = Watcher(), _Clock(video, path)
        ear = None if audio is None else _Ear(audio.codec_context.channels, path)
        undecodable, shown = 0, None
        if video is not None:
            video.thread_type = "AUTO"
        for packet in file.demux([stream for stream in (video, audio) if stream is not None]):
            frames = _decode(packet, ear)
            undecodable += frames is None
            for frame in frames or ():
                if isinstance(frame, av.VideoFrame):
                    shown = shown or read_orientation(frame, video, path).size(frame.height, frame.width)
                    watcher.see(frame, clock.time_of(frame))
                    progress(clock.now_s)
                elif ear is not None:
                    ear.hear(frame)
        picture = watcher.picture()
        if picture is not None and shown is not None:
            picture = replace(picture, height=shown[0], width=shown[1])
        sound = None if ear is None or audio is None else ear.sound(audio.codec_context.sample_rate)
    if picture is None and sound is None:
        raise ValueError(f"cannot judge {path}: nothing in it could be decoded")
    return Media(path=Path(path), picture=picture, sound=sound, undecodable=undecodable)


def decode_pictures(path: AnyPath) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frames of the first video stream as RGB and upright, all at the size of the first one.

    Packets that cannot be decoded are skipped.
    """
    import av
    from av.error import FFmpegError

    with open_media(path) as file:
        size: dict[str, int] = {}
        orientation, video = Orientation(), find_picture(file, path)
        for packet in file.demux(video):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                if isinstance(frame, av.VideoFrame):
                    if not size:
                        orientation = read_orientation(frame, video, path)
                        size = {"width": frame.width, "height": frame.height}
                    yield orientation.show(frame.reformat(**size, format="rgb24").to_ndarray())
