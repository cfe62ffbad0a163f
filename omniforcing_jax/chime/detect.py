"""Events: impacts from the tracks of a picture, onsets from the samples of a sound.

Detection knows the box, its gravity, the pitches, and how tones decay and are panned, and nothing else of the world. An
impact is where the flight before and the flight after meet, to a fraction of a frame. An onset is where one pitch grows
louder, to a fraction of a millisecond. Constants were tuned on rendered truth only (world seeds [77, i]; evaluation
uses others).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from omniforcing_jax.chime.box import DECAY, GRAVITY, PITCHES, RADIUS
from omniforcing_jax.chime.track import Tracks
from omniforcing_jax.layout import FRAME_RATE

NEAR = 0.06  # box units between the place where two flights meet and the surface
REACH = 0.3  # seconds of track on either side that a fit may use
GAP = 0.25  # longest blink, in seconds, across which a bounce is still believed
LEAST = 3  # frames that a fit needs
LEAST_TURN = {"floor": 1.0, "wall": 0.2}  # change of velocity in box units per second; the world's least: 2.7 and 0.3
CORNER = 0.04  # impacts of one ball, or onsets of one pitch, that are closer than this many seconds are one event

HOP = 0.002  # seconds between loudness values
WIDTH = 0.04  # seconds of the analysis window: its spectrum has zeros at all multiples of 25 Hz from 50 Hz on
LATENT = 0.0003  # seconds by which the steepest rise of a tone comes after its impact, measured on truth
QUIET = 0.03  # least rise of amplitude; the world's softest impact has 0.08
BESIDE = 0.024  # seconds; an analysis window so far from an onset holds none of its rise
BACK, AHEAD = 0.1, 0.15  # seconds before and after the steepest rise of a tone in which it begins and ends to rise
LOW, HIGH = 0.1, 0.9  # shares of the rise between which its time is taken
LEAK = 0.15  # a pitch rises at least by this share of what any other pitch rises by at the same time


@dataclass(frozen=True, kw_only=True)
class Event:
    """An impact seen or an onset heard."""

    time: float  # seconds
    colour: int  # of the ball, or the one whose pitch sounded
    strength: float  # change of velocity in box units per second, or rise of amplitude
    place: float = math.nan  # from 0, left, to 1, right: where it is seen to hit, or heard to ring; NaN where unknown
    rise_s: float = math.nan  # of an onset, seconds from a tenth of the rise to nine; NaN too near an end of the clip


def _line(
    t: Float[np.ndarray, " n"], q: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """Fit q = place + speed * t by weighted least squares."""
    total = weight.sum()
    t0, q0 = (weight * t).sum() / total, (weight * q).sum() / total
    speed = (weight * (t - t0) * (q - q0)).sum() / (weight * (t - t0) ** 2).sum()
    return q0 - speed * t0, speed


def _turns(
    times: Float[np.ndarray, " n"],
    places: Float[np.ndarray, " n"],
    spread: Float[np.ndarray, " n"],
    pull: float,
    surface: float,
    least: float,
) -> list[tuple[float, float]]:
    """Find where a coordinate turns back at a surface: (time, change of velocity), the latter positive if upwards.

    Each gap between two neighbouring sightings is tried as the place of the bounce: the flight before and the flight
    after are fitted apart (straight lines once the pull is taken out) and must meet inside that gap, near the surface.
    Among neighbouring gaps that both qualify, the better fit wins.
    """
    found: list[tuple[float, float, float]] = []
    slack = 0.3 / FRAME_RATE
    away = 1 if surface < 0.5 else -1
    close = np.abs(places - surface) < 0.2
    for i in np.flatnonzero((close[:-1] | close[1:]) & (np.diff(times) <= GAP)):
        before = np.flatnonzero(times[: i + 1] >= times[i] - REACH)
        after = i + 1 + np.flatnonzero(times[i + 1 :] <= times[i + 1] + REACH)
        if min(len(before), len(after)) < LEAST:
            continue
        middle = (times[i] + times[i + 1]) / 2
        straight = places + pull / 2 * (times - middle) ** 2
        weight = 1 / spread**2
        fits = [_line(times[part] - middle, straight[part], weight[part]) for part in (before, after)]
        (place_0, speed_0), (place_1, speed_1) = fits
        turn = speed_1 - speed_0
        if turn * away < least:
            continue
        t = (place_0 - place_1) / turn
        if not times[i] - slack <= middle + t <= times[i + 1] + slack:
            continue
        if abs(place_0 + speed_0 * t - pull / 2 * t**2 - surface) > NEAR:
            continue
        misses = [
            np.abs(place + speed * (times[part] - middle) - straight[part]).mean()
            for part, (place, speed) in zip((before, after), fits, strict=True)
        ]
        found.append((float(middle + t), float(turn), float(sum(misses))))
    best = [e for e in found if all(e[2] <= other[2] for other in found if abs(other[0] - e[0]) < 3 / FRAME_RATE)]
    return [(t, turn) for t, turn, _ in best]


def _merge(events: list[Event], apart: float) -> list[Event]:
    """Keep the stronger of events that are closer than `apart` seconds; the result is in order of time."""
    kept: list[Event] = []
    for event in sorted(events, key=lambda e: -e.strength):
        if all(abs(event.time - other.time) >= apart for other in kept):
            kept.append(event)
    return sorted(kept, key=lambda e: e.time)


def impacts(tracks: Tracks) -> list[Event]:
    """Find every impact of every colour in a clip that begins at time zero."""
    times = np.arange(len(tracks.visible)) / FRAME_RATE
    events: list[Event] = []
    for colour in range(tracks.visible.shape[1]):
        seen = np.isfinite(tracks.centres[:, colour, 0])
        x, y = tracks.centres[seen, colour].T
        spread_x, spread_y = tracks.spread[seen, colour].T
        turns = _turns(times[seen], y, spread_y, GRAVITY, RADIUS, LEAST_TURN["floor"])
        hits = [(t, turn, float(np.interp(t, times[seen], x))) for t, turn in turns]
        for wall in (RADIUS, 1 - RADIUS):
            hits += [(*hit, wall) for hit in _turns(times[seen], x, spread_x, 0.0, wall, LEAST_TURN["wall"])]
        events += _merge([Event(time=t, colour=colour, strength=abs(turn), place=at) for t, turn, at in hits], CORNER)
    return sorted(events, key=lambda e: e.time)


def loudness(audio: Float[np.ndarray, "samples 2"], rate: int) -> Float[np.ndarray, "p hops 2"]:
    """Return each pitch's amplitude left and right every `HOP` seconds.

    Each pitch is shifted to zero frequency and smoothed by a window whose spectrum is zero at the other pitches.
    """
    from scipy.signal import oaconvolve

    hop, length = round(HOP * rate), round(WIDTH * rate)
    window = np.hanning(length + 2)[1:-1]
    window = (2 * window / window.sum()).astype(np.float32)
    phase = np.arange(len(audio)) / rate
    levels = []
    for pitch in PITCHES:
        carrier = np.exp(-2j * np.pi * ((pitch * phase) % 1)).astype(np.complex64)
        smooth = oaconvolve(audio * carrier[:, None], window[:, None], mode="full", axes=0)
        centred = smooth[(length - 1) // 2 :][: len(audio) : hop]
        levels.append(np.abs(centred))
    return np.stack(levels)


def _rises(level: Float[np.ndarray, "p hops"]) -> Float[np.ndarray, "p hops"]:
    """Return how much louder each pitch is half a window after a moment than half a window before.

    Looking that far to either side sees past the ripple that the onset of another pitch leaves.
    """
    step = round(0.5 * WIDTH / HOP)
    padded = np.pad(level, ((0, 0), (step, step)), mode="edge")
    return padded[:, 2 * step :] - padded[:, : -2 * step]


def _heard_place(sides: Float[np.ndarray, "hops 2"], onset: int) -> float:
    """Return where a tone begins to ring, by how much it adds left and right to what an earlier one has left over."""
    step = round(BESIDE / HOP)
    if not step <= onset < len(sides) - step:
        return math.nan
    left_over = sides[onset - step] * math.exp(-2 * step * HOP / DECAY)
    left, right = np.maximum(sides[onset + step] - left_over, 0)
    return float(np.arctan2(right, left) / (np.pi / 2)) if left or right else math.nan


def _rise_s(level: Float[np.ndarray, " hops"], onset: int) -> float:
    """Return how long a tone takes to rise, from the least level before its steepest rise to the highest after it."""
    back, ahead = round(BACK / HOP), round(AHEAD / HOP)
    if not back <= onset < len(level) - ahead:
        return math.nan
    part = level[onset - back : onset + ahead]
    share = (part - part[:back].min()) / (part[back:].max() - part[:back].min())
    below = int(np.flatnonzero(share[: back + 1] <= LOW)[-1])
    above = below + 1 + int(np.flatnonzero(share[below + 1 :] >= HIGH)[0])
    first = below + (LOW - share[below]) / (share[below + 1] - share[below])
    last = above - (share[above] - HIGH) / (share[above] - share[above - 1])
    return float(last - first) * HOP


def onsets(audio: Float[np.ndarray, "samples 2"], rate: int) -> list[Event]:
    """Find every onset of every pitch in a clip that begins at time zero."""
    from scipy.ndimage import maximum_filter1d

    if len(audio) < WIDTH * rate:
        return []
    sides = loudness(audio, rate)
    level = np.sqrt((sides**2).sum(-1))
    rise = _rises(level)
    flux = np.gradient(level, HOP, axis=1)
    rival = maximum_filter1d(rise.max(axis=0), round(WIDTH / HOP) + 1)
    events: list[Event] = []
    for colour in range(len(PITCHES)):
        f, r = flux[colour], rise[colour]
        peaks = np.flatnonzero((f[1:-1] >= f[:-2]) & (f[1:-1] > f[2:]) & (f[1:-1] > 0)) + 1
        found = []
        for i in peaks[(r[peaks] > QUIET) & (r[peaks] > LEAK * rival[peaks])]:
            left, middle, right = f[i - 1 : i + 2]
            peak = i + 0.5 * (left - right) / (left - 2 * middle + right)
            time, place = float(peak * HOP - LATENT), _heard_place(sides[colour], int(i))
            rise_s = _rise_s(level[colour], int(i))
            found.append(Event(time=time, colour=colour, strength=float(r[i]), place=place, rise_s=rise_s))
        events += _merge(found, CORNER)
    return sorted(events, key=lambda e: e.time)
