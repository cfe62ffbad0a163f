"""All figures of a file.

    media       name, seconds, picture_s and sound_s (the length of each stream), frames, frame_rate, width, height,
                sample_rate, channels, undecodable (packets)
    synchrony   lag_ms, correlation, confidence, how sure they are, and the motion they were measured on (synchrony.py)
    seams       for each measure: the ratio of borders to other places, and the highest ratio elsewhere (seams.py)
    levels      picture and sound of the whole file (drift.py)
    faults      black, repeated and frozen frames, and flashes (faults.py)
    stereo      the levels left and right, and whether sound comes from where it is seen (stereo.py)
    drift       the levels in the first and in the last seconds, and their change

Figures that a file cannot have are null: those of the sound if there is no sound, or the drift of a short file.
"""

from collections.abc import Mapping
from typing import Any

from omniforcing_jax.judge import drift
from omniforcing_jax.judge.certainty import measure_certainty
from omniforcing_jax.judge.faults import find_faults
from omniforcing_jax.judge.media import Media
from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.seams import Blocks, Profile, picture_profiles, sound_profiles
from omniforcing_jax.judge.sound import Sound
from omniforcing_jax.judge.stereo import measure_stereo
from omniforcing_jax.judge.synchrony import correlate, measure_synchrony

NOTICED_S = 0.25  # seconds by which picture and sound may differ in length before it is told: coders pad
UNSEEN_FRAME_S = 1 / 24  # seconds; frame length for the first block of a file without a picture

Profiles = dict[str, Profile | None]


def describe_media(media: Media) -> dict[str, Any]:
    """Return name, length, sizes and rates of a file."""
    picture, sound = media.picture, media.sound
    return {
        "name": media.name,
        "seconds": media.stop_s - media.start_s,
        "picture_s": None if picture is None else picture.stop_s - float(picture.times[0]),
        "sound_s": None if sound is None else sound.stop_s - sound.start_s,
        "frames": None if picture is None else len(picture.times),
        "frame_rate": None if picture is None else 1 / picture.frame_s,
        "width": None if picture is None else picture.width,
        "height": None if picture is None else picture.height,
        "sample_rate": None if sound is None else sound.sample_rate,
        "channels": None if sound is None else sound.channels,
        "undecodable": media.undecodable,
    }


def find_seams(media: Media, blocks: Blocks) -> dict[str, Profiles | None]:
    """Compare block borders with other places, in `picture` and in `sound`; None for a missing stream."""
    picture, sound = media.picture, media.sound
    start_s, frame_s = _first_frame(picture, media)
    return {
        "picture": None if picture is None else picture_profiles(picture, blocks),
        "sound": None if sound is None else sound_profiles(sound, blocks, start_s, frame_s),
    }


def _first_frame(picture: Picture | None, media: Media) -> tuple[float, float]:
    """Return start and length of the first frame, in seconds."""
    return (media.start_s, UNSEEN_FRAME_S) if picture is None else (float(picture.times[0]), picture.frame_s)


def _levels(media: Media, window: drift.Window) -> dict[str, drift.WindowLevels | None]:
    return {
        "picture": None if media.picture is None else drift.picture_levels(media.picture, window),
        "sound": None if media.sound is None else drift.sound_levels(media.sound, window),
    }


def _measure_drift(media: Media) -> dict[str, Any] | None:
    windows = drift.first_and_last(media.start_s, media.stop_s)
    if windows is None:
        return None
    first, last = (_levels(media, window) for window in windows)
    table: dict[str, Any] = {"window_s": windows[0][1] - windows[0][0]}
    for stream, before in first.items():
        after = last[stream]
        table[stream] = None if before is None or after is None else drift.tabulate_change(before, after)
    return table


def _measure_synchrony(picture: Picture, sound: Sound) -> dict[str, float | None] | None:
    """Measure synchrony, and beside it the motion: picture and sound agree easily where next to nothing moves."""
    correlation = correlate(picture, sound)
    figures = measure_synchrony(correlation)
    if correlation is None or figures is None:
        return None
    shared = (max(float(picture.times[0]), sound.start_s), min(picture.stop_s, sound.stop_s))
    motion = drift.picture_levels(picture, shared)["motion"]
    return {**figures, **measure_certainty(correlation), "motion": motion}


def judge_media(media: Media, blocks: Blocks) -> dict[str, Any]:
    """Return all figures of a file, as the head of this module lists them."""
    picture, sound = media.picture, media.sound
    seams = {
        stream: profiles and {name: None if profile is None else profile.figure() for name, profile in profiles.items()}
        for stream, profiles in find_seams(media, blocks).items()
    }
    return {
        "media": describe_media(media),
        "synchrony": None if picture is None or sound is None else _measure_synchrony(picture, sound),
        "seams": {"block_seconds": blocks.seconds, "first_block_frames": blocks.first_frames, **seams},
        "levels": _levels(media, (media.start_s, media.stop_s)),
        "faults": None if picture is None else find_faults(picture),
        "stereo": None if sound is None else measure_stereo(picture, sound),
        "drift": _measure_drift(media),
    }


def subtract(figures: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures - reference, leaf by leaf; None where either is missing. Texts are left out."""
    result: dict[str, Any] = {}
    for name, value in figures.items():
        other = reference.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            result[name] = subtract(value, other)
        elif isinstance(value, int | float) and isinstance(other, int | float):
            result[name] = value - other
        elif not isinstance(value, str):
            result[name] = None
    return result


def _tell_lengths(picture_s: float | None, sound_s: float | None) -> list[str]:
    """Say that the two streams differ in length, if that can be noticed."""
    if picture_s is None or sound_s is None or abs(picture_s - sound_s) < NOTICED_S:
        return []
    return [f"picture {picture_s:.1f} s but sound {sound_s:.1f} s"]


def _tell_synchrony(sync: Mapping[str, Any]) -> str:
    """Say how late the sound is, from when to when in 95 of 100, how alike both are, and how much moves."""
    sure = "" if sync["lag_low_ms"] is None else f" [{sync['lag_low_ms']:+.0f} to {sync['lag_high_ms']:+.0f}]"
    motion = "" if sync["motion"] is None else f", motion {sync['motion']:.2g}"
    return f"sound {sync['lag_ms']:+.0f}{sure} ms (correlation {sync['correlation']:.2f}{motion})"


def _tell_faults(faults: Mapping[str, Any] | None) -> list[str]:
    """Name the faults of a picture that can be noticed."""
    if faults is None:
        return []
    said = {
        "black": f"{faults['black_share']:.0%} of frames" if faults["black_share"] else "",
        "frozen": f"for {faults['freeze_s']:.1f} s" if faults["freeze_s"] >= NOTICED_S else "",
        "flashes": str(faults["flashes"] or ""),
    }
    return [f"{name} {text}" for name, text in said.items() if text]


def summarise(figures: Mapping[str, Any]) -> str:
    """Return the most telling figures in one line."""
    media, sync = figures["media"], figures["synchrony"]
    parts = [f"{media['seconds']:.1f} s", *_tell_lengths(media["picture_s"], media["sound_s"])]
    if sync is not None:
        parts.append(_tell_synchrony(sync))
    parts += _tell_faults(figures["faults"])
    for stream in ("picture", "sound"):
        ratios = {name: figure for name, figure in (figures["seams"][stream] or {}).items() if figure is not None}
        if ratios:
            name, worst = max(ratios.items(), key=lambda item: item[1]["ratio"] / item[1]["highest_elsewhere"])
            parts.append(f"{stream} seams {name} x{worst['ratio']:.2f} (elsewhere to {worst['highest_elsewhere']:.2f})")
    if figures["drift"] is not None:
        for stream, name in (("sound", "loudness_db"), ("picture", "saturation"), ("picture", "sharpness")):
            change = ((figures["drift"][stream] or {}).get(name) or {}).get("change")
            if change is not None:
                parts.append(f"{name.removesuffix('_db')} {change:+.2f}{' dB' if name.endswith('_db') else ''}")
    return f"{media['name']}: {', '.join(parts)}"
