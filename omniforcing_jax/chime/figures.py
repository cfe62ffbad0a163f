"""The figures that claims are made on: what each clip adds to them.

A figure is a mean or a percentile of values that are pooled over clips: of pairs, impacts, onsets, frames or balls, or
one value a clip. How sure it is says `estimate.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from omniforcing_jax.chime.box import BACKGROUND, PALETTE, pan
from omniforcing_jax.chime.estimate import Values, pool
from omniforcing_jax.chime.metrics import Perceived, agree, pair_up, presence_of
from omniforcing_jax.judge.faults import find_black, find_faults, find_repeats
from omniforcing_jax.judge.picture import Picture

RIM = 0.01  # places nearer to a side than this count as this near: one channel is 36 dB softer there


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, by the values that one clip adds to it."""

    values: Callable[[Perceived], Sequence[float] | Values]
    percentile: int | None = None  # of the pooled values; None is their mean
    unit: str = "share"
    of: str  # what is pooled


def purity_of(clip: Perceived) -> Float[np.ndarray, " n"]:
    """Return how pure the colour of each ball is in each frame in which it is seen: 1 is its own, 0 the backdrop's.

    Purity falls by the distance from the palette colour, as a share of that colour's distance from the backdrop.
    """
    away = np.linalg.norm(PALETTE.astype(np.float64) - BACKGROUND, axis=1)
    purity = 1 - clip.picture.tracks.colour_error / away
    return purity[np.isfinite(purity)]


def stereo_errors(clip: Perceived) -> Float[np.ndarray, " pairs"]:
    """Return how far the level differences of onsets are from those of the places where the balls are seen to hit.

    In dB, left over right: positive where a tone is too far to the left. Pairs whose place is unknown are left out.
    """
    places = [(onset.place, impact.place) for impact, onset in clip.pairs]
    heard, seen = _left_over_right_db(np.array(places).reshape(-1, 2).T)
    errors = heard - seen
    return errors[np.isfinite(errors)]


def _left_over_right_db(place: Float[np.ndarray, "2 pairs"]) -> Float[np.ndarray, "2 pairs"]:
    left, right = np.moveaxis(pan(np.clip(place, RIM, 1 - RIM)), -1, 0)
    return 20 * np.log10(left / right)


def _frames(measure: Callable[[Picture], Sequence[float] | Values]) -> Callable[[Perceived], Sequence[float] | Values]:
    """Measure the frames of a clip; of fewer than three frames nothing is known."""
    return lambda clip: [] if clip.picture.frames is None else measure(clip.picture.frames)


def _presence(count: int) -> Callable[[Perceived], list[float]]:
    """Return how long each ball is seen, of clips with so many of them."""
    return lambda clip: presence_of(clip) if clip.request is not None and clip.request.count == count else []


def _rises_ms(clip: Perceived) -> Values:
    rises = np.array([1e3 * onset.rise_s for onset in clip.sound.onsets])
    return rises[np.isfinite(rises)]


FIGURES = {
    "sync_ms_p50": Figure(values=lambda clip: pair_up(clip).gaps_ms, percentile=50, unit="ms", of="pairs"),
    "sync_ms_p95": Figure(values=lambda clip: pair_up(clip).gaps_ms, percentile=95, unit="ms", of="pairs"),
    "sync_recall": Figure(values=lambda clip: pair_up(clip).impacts_ring, of="impacts"),
    "sync_precision": Figure(values=lambda clip: pair_up(clip).onsets_are_seen, of="onsets"),
    "count_accuracy": Figure(values=lambda clip: agree(clip)[:1], of="clips"),
    "colour_accuracy": Figure(values=lambda clip: agree(clip)[1:2], of="clips"),
    "pitch_accuracy": Figure(values=lambda clip: agree(clip)[2:], of="clips"),
    "presence_1": Figure(values=_presence(1), of="balls"),
    "presence_2": Figure(values=_presence(2), of="balls"),
    "presence_3": Figure(values=_presence(3), of="balls"),
    "colour_purity": Figure(values=purity_of, of="frames of balls"),
    "stereo_error_db": Figure(values=lambda clip: np.abs(stereo_errors(clip)), unit="dB", of="pairs"),
    "stereo_bias_db": Figure(values=stereo_errors, unit="dB", of="pairs"),
    "rise_ms_p50": Figure(values=_rises_ms, percentile=50, unit="ms", of="onsets"),
    "motion": Figure(values=_frames(lambda frames: frames.change[1:] / frames.frame_s), unit="luma/s", of="frames"),
    "black_share": Figure(values=_frames(find_black), of="frames"),
    "duplicate_share": Figure(values=_frames(lambda frames: find_repeats(frames)[1:]), of="frames"),
    "freeze_s": Figure(values=_frames(lambda frames: [find_faults(frames)["freeze_s"]]), unit="s", of="clips"),
    "flashes": Figure(values=_frames(lambda frames: [find_faults(frames)["flashes"]]), unit="per clip", of="clips"),
}


def values_of(clip: Perceived) -> dict[str, Values]:
    """Return what a clip adds to each figure."""
    return {name: np.asarray(figure.values(clip), np.float64) for name, figure in FIGURES.items()}


def pool_clips(clips: Sequence[Perceived]) -> dict[str, float | None]:
    """Return all figures of some clips, without intervals; None where nothing is pooled."""
    parts = [values_of(clip) for clip in clips]
    return {name: pool([part[name] for part in parts], figure.percentile) for name, figure in FIGURES.items()}
