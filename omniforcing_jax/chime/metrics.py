"""How good a clip is: synchrony of impacts and onsets, agreement with the prompt, and drift from its start to its end.

The metrics work on what was seen and heard (`track.py`, `detect.py`), never on latents or on a rendered world's truth.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from omniforcing_jax.chime.detect import Event, impacts, onsets
from omniforcing_jax.chime.film import Film
from omniforcing_jax.chime.prompts import COLOURS, Request
from omniforcing_jax.chime.track import Tracks, watch
from omniforcing_jax.judge.picture import Picture, Watcher
from omniforcing_jax.layout import FRAME_RATE

TOLERANCE = 0.1  # seconds between an impact and an onset that may belong together
EDGE = 0.1  # an event this close to an end of the clip does not count against it: its partner may lie outside
MOMENT = 0.05  # seconds over which loudness and noise are measured
TONES = (300.0, 4000.0)  # Hz; tones and their partials lie well inside, what lies outside is noise
SILENCE = -120.0  # dB, said instead of minus infinity
DRIFT_SHARE, DRIFT_LEAST = 0.15, 5.0  # a drift window is this share of the clip, and at least so many seconds

Seconds = float | int
Window = tuple[Seconds, Seconds]  # a part of a clip, its end not included
Numbers = Sequence[float | bool] | Float[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen in a clip."""

    seconds: float
    tracks: Tracks
    impacts: list[Event]
    frames: Picture | None  # what the judge of files measures of each frame; None for fewer than three


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was heard in a clip: onsets, and per moment the mean square of everything and of the noise."""

    onsets: list[Event]
    power: Float[np.ndarray, " m"]
    noise: Float[np.ndarray, " m"]


@dataclass(frozen=True, kw_only=True)
class Perceived:
    """A clip as judged; without a request nothing is said about the prompt."""

    picture: Seen
    sound: Heard
    request: Request | None

    @functools.cached_property
    def pairs(self) -> list[tuple[Event, Event]]:
        """Impacts and onsets that belong together, found once."""
        impacts_seen, onsets_heard = self.picture.impacts, self.sound.onsets
        return [(impacts_seen[i], onsets_heard[j]) for i, j in match(impacts_seen, onsets_heard)]


def see(video: UInt8[np.ndarray, "F S S 3"]) -> Seen:
    """Find balls and impacts in a clip at 24 frames per second."""
    import av

    tracks, watcher = watch(video), Watcher()
    for index, frame in enumerate(video):
        watcher.see(av.VideoFrame.from_ndarray(frame, format="rgb24"), index / FRAME_RATE)
    return Seen(seconds=len(video) / FRAME_RATE, tracks=tracks, impacts=impacts(tracks), frames=watcher.picture())


def hear(audio: Float[np.ndarray, "samples 2"], rate: int) -> Heard:
    """Find onsets in a clip, and how loud and how noisy each moment is."""
    length = round(MOMENT * rate)
    moments = audio[: len(audio) // length * length].reshape(-1, length, 2)
    window = np.hanning(length).astype(np.float32)[:, None]
    spectrum = np.abs(np.fft.rfft(moments * window, axis=1)) ** 2 * (2 / (length * (window**2).sum()))
    frequency = np.fft.rfftfreq(length, 1 / rate)
    outside = (frequency < TONES[0]) | (frequency > TONES[1])
    return Heard(
        onsets=onsets(audio, rate),
        power=(moments.astype(np.float64) ** 2).mean((1, 2)),
        noise=spectrum[:, outside].sum(1).mean(1),
    )


def perceive(film: Film, request: Request | None = None) -> Perceived:
    """See and hear a clip whose sound begins with its picture."""
    return Perceived(picture=see(film.video), sound=hear(film.audio, film.sample_rate), request=request)


def match(seen: Sequence[Event], heard: Sequence[Event]) -> list[tuple[int, int]]:
    """Pair impacts with onsets of the same colour one to one, within the tolerance, the nearest pairs first."""
    candidates = sorted(
        (abs(impact.time - onset.time), i, j)
        for i, impact in enumerate(seen)
        for j, onset in enumerate(heard)
        if impact.colour == onset.colour and abs(impact.time - onset.time) <= TOLERANCE
    )
    pairs: list[tuple[int, int]] = []
    free_impacts, free_onsets = set(range(len(seen))), set(range(len(heard)))
    for _, i, j in candidates:
        if i in free_impacts and j in free_onsets:
            free_impacts.remove(i)
            free_onsets.remove(j)
            pairs.append((i, j))
    return pairs


def pitches_heard(heard: Sequence[Event]) -> tuple[int, ...]:
    """Return the pitches that sounded in earnest: whose rises add up to a quarter of the busiest pitch's."""
    total = np.zeros(len(COLOURS))
    for event in heard:
        total[event.colour] += event.strength
    return tuple(np.flatnonzero(total > 0.25 * total.max()).tolist())


def _percentile(values: Numbers, q: int) -> float | None:
    return float(np.percentile(values, q)) if len(values) else None


def _mean(values: Numbers) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _decibels(power: float) -> float:
    return max(SILENCE, 10 * float(np.log10(max(power, 1e-30))))


def _within(events: Sequence[Event], start: Seconds, stop: Seconds) -> list[Event]:
    return [event for event in events if start <= event.time < stop]


class Pairs(NamedTuple):
    """What of a window of a clip is in sync."""

    gaps_ms: list[float]  # |onset - impact| of each pair
    impacts_ring: list[bool]  # for each impact seen that counts, whether it has an onset
    onsets_are_seen: list[bool]  # for each onset heard that counts, whether it has an impact


def pair_up(clip: Perceived, window: Window | None = None) -> Pairs:
    """Pair impacts and onsets in a window of a clip, or in all of it; see `synchrony`."""
    start, stop = window or (0.0, clip.picture.seconds)
    low, high = max(start, EDGE), min(stop, clip.picture.seconds - EDGE)
    partner = dict(clip.pairs)
    matched = _within(list(partner), start, stop)
    unheard = len(set(_within(clip.picture.impacts, low, high)) - set(partner))
    unseen = len(set(_within(clip.sound.onsets, low, high)) - set(partner.values()))
    both = [True] * len(matched)
    return Pairs(
        gaps_ms=[1e3 * abs(partner[impact].time - impact.time) for impact in matched],
        impacts_ring=both + [False] * unheard,
        onsets_are_seen=both + [False] * unseen,
    )


def synchrony(clips: Sequence[Perceived], windows: Sequence[Window]) -> dict[str, float | None]:
    """Compare what is seen with what is heard, in one window (start, stop) of each clip.

    `sync_ms_p50` and `sync_ms_p95` are percentiles of |onset - impact| over matched pairs. Recall is the share of
    the impacts seen that have an onset, precision the share of the onsets heard that have an impact; 0 if there is
    none. Events within `EDGE` of the clip's ends count if they are matched and are left out if not.
    """
    pairs = [pair_up(clip, window) for clip, window in zip(clips, windows, strict=True)]
    gaps, ring, seen = ([value for each in pairs for value in each[part]] for part in range(3))
    return {
        "sync_ms_p50": _percentile(gaps, 50),
        "sync_ms_p95": _percentile(gaps, 95),
        "sync_recall": _mean(ring) or 0.0,
        "sync_precision": _mean(seen) or 0.0,
    }


def agree(clip: Perceived, window: Window | None = None) -> tuple[bool, ...]:
    """Say whether number of balls, colours and pitches are exactly those asked for; nothing without a request."""
    request, (start, stop) = clip.request, window or (0.0, clip.picture.seconds)
    if request is None:
        return ()
    tracks = clip.picture.tracks.between(start, stop)
    wanted = tuple(sorted(COLOURS.index(colour) for colour in request.colours))
    heard = pitches_heard(_within(clip.sound.onsets, start, stop))
    return tracks.count() == request.count, tracks.colours() == wanted, heard == wanted


def adherence(clips: Sequence[Perceived], windows: Sequence[Window]) -> dict[str, float | None]:
    """Return the shares of clips whose count, colours and pitches are exactly the requested ones, and the least."""
    pairs = zip(clips, windows, strict=True)
    verdicts = [agree(clip, window) for clip, window in pairs if clip.request is not None]
    shares = [_mean(column) for column in zip(*verdicts, strict=True)] or [None, None, None]
    least = min((share for share in shares if share is not None), default=None)
    return dict(
        zip(("count_accuracy", "colour_accuracy", "pitch_accuracy", "adherence"), [*shares, least], strict=True)
    )


def presence_of(clip: Perceived) -> list[float]:
    """Return for each ball asked for the share of the frames in which it is seen."""
    seen = clip.picture.tracks.presence()
    return [] if clip.request is None else [float(seen[COLOURS.index(colour)]) for colour in clip.request.colours]


def state(clips: Sequence[Perceived], windows: Sequence[Window]) -> dict[str, float | None]:
    """Measure what may drift, in one window of each clip.

    Colour error is the mean RGB distance from the palette inside the balls (8-bit levels); loudness is the RMS in dB
    of full scale, and the noise floor the same below 300 Hz and above 4 kHz in the quietest tenth of the moments.
    """
    errors, powers, noises = [], [], []
    for clip, (start, stop) in zip(clips, windows, strict=True):
        errors.append(clip.picture.tracks.between(start, stop).colour_error)
        moments = slice(round(start / MOMENT), round(stop / MOMENT))
        powers.append(clip.sound.power[moments])
        noises.append(clip.sound.noise[moments])
    error, power, noise = np.concatenate(errors), np.concatenate(powers), np.concatenate(noises)
    sync, agreement = synchrony(clips, windows), adherence(clips, windows)
    return {
        "sync_ms_p50": sync["sync_ms_p50"],
        "sync_recall": sync["sync_recall"],
        "count_accuracy": agreement["count_accuracy"],
        "colour_error": _mean(error[np.isfinite(error)]),
        "loudness_db": _decibels(power.mean()) if len(power) else None,
        "noise_floor_db": _decibels(float(np.percentile(noise, 10))) if len(noise) else None,
    }


def drift_window(seconds: float) -> float | None:
    """Return the length of the first and the last part of a clip that are compared; None if two do not fit into it.

    A window is 15 % of the clip but at least 5 s.
    """
    window = max(DRIFT_LEAST, DRIFT_SHARE * seconds)
    return None if 2 * window > seconds else window


def cut(clip: Perceived, start: Seconds, stop: Seconds) -> Perceived:
    """Return what was seen and heard in a part of a clip, its times counted from that part's start."""
    picture, sound = clip.picture, clip.sound
    moments = slice(round(start / MOMENT), round(stop / MOMENT))

    def shifted(events: Sequence[Event]) -> list[Event]:
        return [replace(event, time=event.time - start) for event in _within(events, start, stop)]

    return Perceived(
        picture=Seen(
            seconds=stop - start,
            tracks=picture.tracks.between(start, stop),
            impacts=shifted(picture.impacts),
            frames=None if picture.frames is None else picture.frames.between(start, stop),
        ),
        sound=Heard(onsets=shifted(sound.onsets), power=sound.power[moments], noise=sound.noise[moments]),
        request=clip.request,
    )


def drift(clips: Sequence[Perceived]) -> dict | None:
    """Compare the first and the last seconds of the (shortest of the) clips, as long as `drift_window` says."""
    window = drift_window(min(clip.picture.seconds for clip in clips))
    if window is None:
        return None
    return {
        "window_s": window,
        "first": state(clips, [(0.0, window)] * len(clips)),
        "last": state(clips, [(clip.picture.seconds - window, clip.picture.seconds) for clip in clips]),
    }


def judge_clips(clips: Sequence[Perceived]) -> dict:
    """Judge clips together; the keys are those of the evaluation's JSON.

    Pairs, impacts and onsets are pooled over all clips; accuracies are shares of clips, None without requests.
    """
    whole = [(0.0, clip.picture.seconds) for clip in clips]
    return {**synchrony(clips, whole), **adherence(clips, whole), "drift": drift(clips)}


def by_count(clips: Sequence[Perceived]) -> dict[str, dict]:
    """Judge clips apart by the number of balls asked for, those without a request not at all.

    Beside synchrony and adherence: how many clips, impacts seen and onsets heard there are, and `presence`, the mean
    share of the frames in which a ball asked for is seen.
    """
    groups: dict[int, list[Perceived]] = {}
    for clip in clips:
        if clip.request is not None:
            groups.setdefault(clip.request.count, []).append(clip)
    figures = {}
    for count, alike in sorted(groups.items()):
        windows = [(0.0, clip.picture.seconds) for clip in alike]
        figures[str(count)] = {
            "clips": len(alike),
            "impacts": sum(len(clip.picture.impacts) for clip in alike),
            "onsets": sum(len(clip.sound.onsets) for clip in alike),
            "presence": _mean([share for clip in alike for share in presence_of(clip)]),
            **synchrony(alike, windows),
            **adherence(alike, windows),
        }
    return figures
