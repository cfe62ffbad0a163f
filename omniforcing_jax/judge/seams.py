"""Whether one can see and hear where one block ends and the next begins.

Each measure gives every place (a frame, or a moment of sound) a size. A seam is a place that is larger than its
neighbours on both sides. Borders are compared with all other phases of the same period: a figure is the geometric mean
at the borders over the geometric mean at other phases. One onset or cut that falls on a border therefore decides
nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.sound import MOMENT, Sound
from omniforcing_jax.judge.synchrony import QUIET

BLOCK_SECONDS = (0.05, 3600.0)  # shortest and longest block
MOST_FIRST_FRAMES = 100_000
FEWEST_BORDERS = 2  # a single border cannot be told from an event that falls on it
FEWEST_PHASES = 8  # places of a period


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where one block ends and the next begins.

    Attributes:
        seconds: Length of every block except the first.
        first_frames: Frames of the first block.

    Raises:
        ValueError: If either is out of range.
    """

    seconds: float = 1.0
    first_frames: int = 1

    def __post_init__(self) -> None:
        shortest, longest = BLOCK_SECONDS
        if not shortest <= self.seconds <= longest:
            raise ValueError(f"block-seconds={self.seconds}: must be from {shortest:g} to {longest:g}")
        if not 1 <= self.first_frames <= MOST_FIRST_FRAMES:
            raise ValueError(f"first-block-frames={self.first_frames}: must be from 1 to {MOST_FIRST_FRAMES}")

    def borders(self, start_s: float, stop_s: float, frame_s: float) -> Float[np.ndarray, " borders"]:
        """Return the times of the borders inside a clip whose frames are `frame_s` long, in seconds."""
        return np.arange(start_s + self.first_frames * frame_s, stop_s - frame_s / 2, self.seconds)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the places of one measure are compared.

    Attributes:
        step_s: Seconds from one place to the next.
        near: Places by which a seam may miss its border; the largest one counts.
        gap: Neighbours on either side that the same seam may enlarge; they are skipped.
        width: Places beyond the gap, on either side, that a place is compared with.
        floor: Added to all sizes, so that a tiny size beside zero is no seam.
    """

    step_s: float
    near: int
    gap: int
    width: int
    floor: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much larger than their neighbours the places are, by their phase in the period of the blocks.

    Attributes:
        step_s: Seconds from one phase to the next; the first phase is the border.
        ratios: Geometric mean at each phase over that of the phases far from the border.
        far: Whether a phase is far from the border.
    """

    step_s: float
    ratios: Float[np.ndarray, " phases"]
    far: Bool[np.ndarray, " phases"]

    def figure(self) -> dict[str, float]:
        """Return the ratio at the border, and the highest one far from it, which shows what chance makes.

        A ratio of 1 means no seam.
        """
        return {"ratio": float(self.ratios[0]), "highest_elsewhere": float(self.ratios[self.far].max())}


def stand_out(sizes: Float[np.ndarray, " n"], kind: Kind) -> Float[np.ndarray, " n"]:
    """Return the logarithm of each size over the greater of the medians before and after it."""
    from numpy.lib.stride_tricks import sliding_window_view

    reach = kind.gap + kind.width
    padded = np.pad(sizes, reach, mode="reflect" if len(sizes) > reach else "edge")
    medians = np.median(sliding_window_view(padded, kind.width), axis=1)
    before, after = medians[: len(sizes)], medians[reach + kind.gap + 1 :][: len(sizes)]
    return np.log((sizes + kind.floor) / (np.maximum(before, after) + kind.floor))


def profile(
    sizes: Float[np.ndarray, " n"], places: Int[np.ndarray, " borders"], period: int, kind: Kind
) -> Profile | None:
    """Compare borders with other phases; None if there are too few of either.

    Args:
        sizes: Size of each place.
        places: Index of each border.
        period: Places from one border to the next, rounded.
        kind: How to compare.
    """
    from scipy.ndimage import maximum_filter1d

    if len(places) < FEWEST_BORDERS or period < FEWEST_PHASES:
        return None
    excess = maximum_filter1d(stand_out(sizes, kind), 2 * kind.near + 1)
    phases = np.arange(period)
    index = places[:, None] + phases
    inside = index < len(excess)
    totals = np.where(inside, excess[np.minimum(index, len(excess) - 1)], 0).sum(0)
    means = totals / np.maximum(1, inside.sum(0))
    apart = np.minimum(phases, period - phases)
    far = (apart > 2 * kind.near + kind.gap) & inside.any(0)
    if not far.any():
        return None
    return Profile(step_s=kind.step_s, ratios=np.exp(means - means[far].mean()), far=far)


class Measure(NamedTuple):
    """A size for each place, and how places are compared."""

    sizes: Float[np.ndarray, " n"]
    kind: Kind


def picture_measures(picture: Picture) -> dict[str, Measure]:
    """Measure the steps of a picture from frame to frame.

    Returns:
        `change`: mean |difference| of luma. `brightness`: |step| of the mean luma. `sharpness`: |step| of the logarithm
        of the sharpness.
    """
    sharp = np.log(np.nan_to_num(picture.sharpness, nan=1.0))
    sizes = {
        "change": (picture.change, 1e-3),
        "brightness": (np.abs(np.diff(picture.brightness, prepend=picture.brightness[0])), 2.5e-4),
        "sharpness": (np.abs(np.diff(sharp, prepend=sharp[0])), 1e-2),
    }
    return {
        name: Measure(size, Kind(step_s=picture.frame_s, near=0, gap=0, width=4, floor=floor))
        for name, (size, floor) in sizes.items()
    }


def picture_profiles(picture: Picture, blocks: Blocks) -> dict[str, Profile | None]:
    """Compare the steps of a picture at borders with those elsewhere."""
    borders = blocks.borders(float(picture.times[0]), picture.stop_s, picture.frame_s)
    places, period = picture_places(picture, borders), round(blocks.seconds / picture.frame_s)
    return {name: profile(sizes, places, period, kind) for name, (sizes, kind) in picture_measures(picture).items()}


def picture_places(picture: Picture, borders: Float[np.ndarray, " borders"]) -> Int[np.ndarray, " borders"]:
    """Return the index of the first frame after each border (in seconds)."""
    return np.searchsorted(picture.times, borders - picture.frame_s / 2)


def spectrum_steps(sound: Sound, moments: int = 4) -> Float[np.ndarray, " M"]:
    """Return the mean |difference| of the mel bands, in dB, between a few moments after each place and before it."""
    total = np.cumsum(np.pad(sound.mel, ((moments + 1, moments), (0, 0)), mode="edge"), axis=0, dtype=np.float64)
    means = 10 * np.log10(np.maximum((total[moments:] - total[:-moments]) / moments, QUIET))
    count = len(sound.mel)
    return np.abs(means[moments : moments + count] - means[:count]).mean(1)


def sound_measures(sound: Sound) -> dict[str, Measure]:
    """Measure the steps of a sound from moment to moment.

    Returns:
        `click`: largest |third difference| of samples. `spectrum`: step of the mel bands in dB.
    """
    return {
        "click": Measure(sound.edge, Kind(step_s=MOMENT, near=1, gap=3, width=8, floor=1e-3)),
        "spectrum": Measure(spectrum_steps(sound), Kind(step_s=MOMENT, near=1, gap=4, width=8, floor=0.5)),
    }


def sound_profiles(sound: Sound, blocks: Blocks, start_s: float, frame_s: float) -> dict[str, Profile | None]:
    """Compare the steps of a sound at borders with those elsewhere, to 10 ms.

    Args:
        sound: The sound.
        blocks: Lengths of the blocks.
        start_s: Start of the first block, in seconds: that of the picture if there is one.
        frame_s: Length, in seconds, of the frames that `blocks` counts.
    """
    places = sound_places(sound, blocks.borders(start_s, sound.stop_s, frame_s))
    period = round(blocks.seconds / MOMENT)
    return {
        name: profile(sizes, places[places >= 0], period, kind) for name, (sizes, kind) in sound_measures(sound).items()
    }


def sound_places(sound: Sound, borders: Float[np.ndarray, " borders"]) -> Int[np.ndarray, " borders"]:
    """Return the index of the moment that each border (in seconds) falls into; negative before the sound."""
    return np.floor((borders - sound.start_s) / MOMENT + 1e-6).astype(np.int64)
