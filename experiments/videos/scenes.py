"""Scenes of a video, and what makes one useless for training, from the judge's measurements of the file."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from experiments.videos.buckets import Piece, choose_size, cut
from omniforcing_jax.judge.media import Media
from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.sound import Sound
from omniforcing_jax.strict_json import require

NEAR = 2  # frames on either side that a cut is compared with
QUIET = 1e-12  # added to a power before its logarithm


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a clip must be like.

    Attributes:
        cut_change: Mean |difference of luma| from frame to frame, luma in [0, 1], from which a frame may be a cut.
        cut_ratio: Times the changes around it that a cut must exceed.
        least_motion: Mean |difference of luma| that a clip must have at least; less is a still.
        most_motion: The same at most; more is noise or flicker.
        black: Mean luma below which a frame is black.
        most_black: Share of black frames that a clip may have.
        quietest_db: Level of the whole clip below which it is silent, full scale at 0.
        silence_db: Level of a moment of 10 ms below which the moment is silent.
        most_silence: Share of silent moments that a clip may have.
        most_enlarged: Factor by which a picture may be enlarged to its bucket.
    """

    cut_change: float = 0.06
    cut_ratio: float = 3.0
    least_motion: float = 5e-4
    most_motion: float = 0.2
    black: float = 0.03
    most_black: float = 0.1
    quietest_db: float = -55.0
    silence_db: float = -60.0
    most_silence: float = 0.8
    most_enlarged: float = 1.25

    def __post_init__(self):
        for name in ("most_black", "most_silence"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must be between 0 and 1")
        for name in ("cut_change", "cut_ratio", "most_motion", "most_enlarged"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


def find_cuts(picture: Picture, rules: Rules) -> list[float]:
    """Return the times at which scenes begin, that of the first frame apart."""
    around = _change_around(picture.change)
    is_cut = (picture.change >= rules.cut_change) & (picture.change >= rules.cut_ratio * around)
    return [float(time) for time in picture.times[is_cut]]


def _change_around(change: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """Return the median of the changes beside each frame, itself left out."""
    padded = np.pad(change, NEAR, mode="reflect") if len(change) > NEAR else np.zeros(len(change) + 2 * NEAR)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEAR + 1)
    return np.median(np.delete(windows, NEAR, axis=1), axis=1)


def find_pieces(
    media: Media, sizes: tuple[tuple[int, int], ...], lengths: tuple[int, ...], rules: Rules
) -> tuple[list[Piece], list[str]]:
    """Cut a file into clips.

    Args:
        media: The file's measurements.
        sizes: Heights and widths of the buckets.
        lengths: Seconds of the buckets.
        rules: What a clip must be like.

    Returns:
        The clips, and for each clip or file that was dropped the reason.
    """
    picture, sound = media.picture, media.sound
    if picture is None or sound is None:
        return [], ["no picture" if picture is None else "no sound"]
    size = choose_size((picture.height, picture.width), sizes, rules.most_enlarged)
    if size is None:
        return [], ["too small"]
    start_s, stop_s = max(picture.times[0], sound.start_s), min(picture.stop_s, sound.stop_s)
    inner = [time for time in find_cuts(picture, rules) if start_s < time < stop_s]
    scenes = list(pairwise([float(start_s), *inner, float(stop_s)]))
    pieces = [piece for scene in scenes for piece in cut(*scene, size, lengths)]
    faults = [find_fault(picture, sound, piece, rules) for piece in pieces]
    kept = [piece for piece, fault in zip(pieces, faults, strict=True) if fault is None]
    return kept, [fault for fault in faults if fault is not None] or ([] if pieces else ["too short"])


def find_fault(picture: Picture, sound: Sound, piece: Piece, rules: Rules) -> str | None:
    """Return why a clip is useless; None if nothing is wrong."""
    stop_s = piece.start_s + piece.bucket.seconds
    seen = (picture.times >= piece.start_s - 1e-3) & (picture.times < stop_s)
    power = sound.power[(sound.times >= piece.start_s) & (sound.times < stop_s)]
    if not seen.any() or not len(power):
        return "too short"
    motion = float(picture.change[seen][1:].mean()) if seen.sum() > 1 else 0.0
    level, levels = _decibels(power.mean()), _decibels(power)
    faults = {
        "still": motion < rules.least_motion,
        "flicker": motion > rules.most_motion,
        "black": (picture.brightness[seen] < rules.black).mean() > rules.most_black,
        "silent": level < rules.quietest_db or (levels < rules.silence_db).mean() > rules.most_silence,
    }
    return next((name for name, holds in faults.items() if holds), None)


def _decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(power + QUIET)
