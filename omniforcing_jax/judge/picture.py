"""A picture as a few numbers per frame; the frames themselves are not kept.

Change, brightness and saturation are measured on a small copy of the frame, sharpness on its luma at full size.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    import av

COPY_SIDE = 160  # pixels of the longer side of the small copy
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709
DARK = 0.1  # luma; a pixel below it is dark
COARSE = 8  # pixels; sharpness compares neighbouring pixels with pixels this far apart
REPEATED = 2e-4  # mean |difference| of luma; a frame that changes less is a repeated frame: a 20th of an 8-bit level
REPEATED_SHARE = 0.1  # the same as a share of the last step, for frames that a coder did not repeat exactly
PAUSE_S = 0.15  # a picture shown for longer has stopped, whatever its frame rate
FEWEST_FRAMES = 3  # of a moving picture


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Measurements of a moving picture, one entry per frame.

    Attributes:
        height: Pixels, as it is shown.
        width: Pixels, as it is shown.
        times: Seconds at which a frame is shown, in the file's clock.
        change: Mean |difference of luma| from the frame before, luma in [0, 1]; 0 for the first.
        largest: Largest |difference of luma| of any pixel from the frame before; 0 for the first.
        event: How much the motion changes at a frame, in the same unit; near 0 where motion continues. It is the
            sum of two parts. The first is the share of the step before that the step after reverses: something turns
            back or flashes. The second is the difference of their sizes: something starts, stops or is hit.
        event_side: Where something turns back, from -1, the left rim, to 1, the right one; 0 where nothing does.
        brightness: Mean luma in [0, 1].
        dark: Share of the pixels whose luma is below a tenth.
        saturation: Sum of (largest - smallest) of R, G, B over the sum of the largest, in [0, 1]. A factor on all
            three does not change it.
        sharpness: Root mean square difference of neighbouring pixels over that of pixels 8 apart. It is near 1/8 for a
            smooth picture, 0.35 for clean edges and 1 for noise. A factor does not change it. NaN for an even colour.
    """

    height: int
    width: int
    times: Float[np.ndarray, " F"]
    change: Float[np.ndarray, " F"]
    largest: Float[np.ndarray, " F"]
    event: Float[np.ndarray, " F"]
    event_side: Float[np.ndarray, " F"]
    brightness: Float[np.ndarray, " F"]
    dark: Float[np.ndarray, " F"]
    saturation: Float[np.ndarray, " F"]
    sharpness: Float[np.ndarray, " F"]

    @property
    def frame_s(self) -> float:
        """Median time from a frame to the next, in seconds."""
        return float(np.median(np.diff(self.times)))

    @property
    def stop_s(self) -> float:
        """Time at which the last frame ends."""
        return float(self.times[-1]) + self.frame_s

    def between(self, start_s: float | int, stop_s: float | int) -> "Picture":
        """Return the frames at times in [start_s, stop_s)."""
        inside = (self.times >= start_s) & (self.times < stop_s)
        parts = {name: value[inside] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **parts)


def sharpness(luma: UInt8[np.ndarray, "H W"]) -> float:
    """Compare the differences of neighbouring pixels with those of pixels 8 apart; see `Picture`."""
    fine = coarse = 0.0
    for axis in (0, 1):
        lines = np.moveaxis(luma, axis, 0).astype(np.int16)
        apart = min(COARSE, len(lines) - 1)
        fine += float(np.square(lines[1:] - lines[:-1], dtype=np.float32).mean())
        coarse += float(np.square(lines[apart:] - lines[:-apart], dtype=np.float32).mean())
    return float(np.sqrt(fine / coarse)) if coarse else float("nan")


def _side(strength: Float[np.ndarray, "h w"]) -> float:
    """Return where the strength lies from left, -1, to right, 1, on average; 0 without any."""
    columns = strength.sum(0)
    places = (2 * np.arange(len(columns)) + 1) / len(columns) - 1
    total = float(columns.sum())
    return float(columns @ places) / total if total else 0.0


class _Motion:
    """Compares each small picture with the one before. A repeated frame does not count as a stop.

    The event at a frame is known once the next picture differs from it, or after a pause.
    """

    def __init__(self) -> None:
        self.events: list[float] = []
        self.sides: list[float] = []
        self.largest: list[float] = []
        self._before: Float[np.ndarray, "h w"] | None = None
        self._step: Float[np.ndarray, "h w"] | None = None
        self._at, self._at_s = 0, 0.0  # index and time of the frame that the next event belongs to

    def follow(self, luma: Float[np.ndarray, "h w"], time_s: float) -> float:
        """Take the next picture and return its mean |difference| from the last."""
        self.events.append(0.0)
        self.sides.append(0.0)
        self.largest.append(0.0)
        if self._before is None:
            self._move_on(luma, None, time_s)
            return 0.0
        step = luma - self._before
        change = float(np.abs(step).mean())
        self.largest[-1] = float(np.abs(step).max())
        last = 0.0 if self._step is None else float(np.abs(self._step).mean())
        if change < max(REPEATED, REPEATED_SHARE * last):
            if time_s - self._at_s <= PAUSE_S:
                return change
            step = np.zeros_like(step)
        if self._step is not None:
            taken_back = np.abs(self._step) + np.abs(step) - np.abs(self._step + step)
            self.events[self._at] = float(taken_back.mean() + abs(np.abs(step).mean() - last))
            self.sides[self._at] = _side(taken_back)
        self._move_on(luma, step, time_s)
        return change

    def _move_on(self, luma: Float[np.ndarray, "h w"], step: Float[np.ndarray, "h w"] | None, time_s: float) -> None:
        self._before, self._step = luma, step
        self._at, self._at_s = len(self.events) - 1, time_s


class Watcher:
    """Measures frames one after another."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._shrink, self._grey = VideoReformatter(), VideoReformatter()
        self._motion = _Motion()
        self._rows: list[tuple[float, ...]] = []
        self._size = (0, 0)

    def see(self, frame: "av.VideoFrame", time_s: float) -> None:
        """Measure the next frame, shown at `time_s`. A frame of another size is scaled to that of the first."""
        if not self._rows:
            self._size = (frame.height, frame.width)
        height, width = self._size
        scale = min(1.0, COPY_SIDE / max(height, width))
        small = self._shrink.reformat(
            frame,
            width=max(2, round(width * scale)),
            height=max(2, round(height * scale)),
            format="rgb24",
            interpolation="AREA",
        ).to_ndarray()
        grey = self._grey.reformat(frame, width=width, height=height, format="gray").to_ndarray()
        luma = small @ (LUMA / 255)
        largest = small.max(-1)
        colourful = float((largest - small.min(-1)).sum(dtype=np.int64) / max(1, largest.sum(dtype=np.int64)))
        change = self._motion.follow(luma, time_s)
        dark = float((luma < DARK).mean())
        self._rows.append((time_s, change, float(luma.mean()), dark, colourful, sharpness(grey)))

    def picture(self) -> Picture | None:
        """Return the measurements; None for fewer than three frames."""
        if len(self._rows) < FEWEST_FRAMES:
            return None
        times, change, brightness, dark, saturation, sharp = np.array(self._rows).T
        height, width = self._size
        return Picture(
            height=height,
            width=width,
            times=times,
            change=change,
            largest=np.array(self._motion.largest),
            event=np.array(self._motion.events),
            event_side=np.array(self._motion.sides),
            brightness=brightness,
            dark=dark,
            saturation=saturation,
            sharpness=sharp,
        )
