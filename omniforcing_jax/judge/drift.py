"""Levels of a part of a clip, and how its last seconds differ from its first."""

import numpy as np
from jaxtyping import Float

from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.sound import Sound, centres

WINDOW_SHARE = 0.15  # length of a window as a share of the clip
SHORTEST_WINDOW_S = 5.0
SILENCE_DB = -80.0  # of full scale; the lowest level that is reported
TILT_DEPTH_DB = 40.0  # bands further below the strongest one count as this far below it
NOISE_PERCENTILE = 10  # of the moments; the level of a band there is its noise
TILT_RANGE = (100.0, 7000.0)  # Hz

WindowLevels = dict[str, float | None]
Window = tuple[float, float]  # seconds, in the file's clock


def _decibels(power: float) -> float:
    return max(SILENCE_DB, 10 * float(np.log10(max(power, 1e-30))))


def _tilt(mel: Float[np.ndarray, " bands"]) -> float | None:
    """Return the slope of a spectrum in dB per octave; None for silence."""
    if not mel.any():
        return None
    frequency = centres()
    density = 10 * np.log10(np.maximum(mel / np.gradient(frequency), 1e-30))
    density = np.maximum(density, density.max() - TILT_DEPTH_DB)
    used = (frequency > TILT_RANGE[0]) & (frequency < TILT_RANGE[1])
    return float(np.polyfit(np.log2(frequency[used]), density[used], 1)[0])


def sound_levels(sound: Sound, window: Window) -> WindowLevels:
    """Measure the sound in a window.

    Returns:
        `loudness_db`: root mean square in dB of full scale. `tilt_db_per_octave`: slope of the mean mel spectrum (power
        per Hz) from 100 Hz to 7 kHz. `noise_floor_db`: sum over the bands of the power that a tenth of the moments stay
        below. Levels below -80 dB are reported as -80. All are None for a window without a moment; the tilt is also
        None for digital silence.
    """
    inside = (sound.times >= window[0]) & (sound.times < window[1])
    if not inside.any():
        return dict.fromkeys(("loudness_db", "tilt_db_per_octave", "noise_floor_db"))
    mel = sound.mel[inside].astype(np.float64)
    return {
        "loudness_db": _decibels(float(sound.power[inside].mean())),
        "tilt_db_per_octave": _tilt(mel.mean(0)),
        "noise_floor_db": _decibels(float(np.percentile(mel, NOISE_PERCENTILE, axis=0).sum())),
    }


def picture_levels(picture: Picture, window: Window) -> WindowLevels:
    """Measure the picture in a window.

    Returns:
        Mean `brightness`, `saturation` and `sharpness` of its frames, as `Picture` defines them, and `motion`: mean
        change of luma per second. All are None for a window without two frames.
    """
    inside = (picture.times >= window[0]) & (picture.times < window[1])
    inside[0] = False  # the change of the first frame is unknown
    if not inside.any():
        return dict.fromkeys(("brightness", "saturation", "sharpness", "motion"))
    sharp = picture.sharpness[inside]
    sharp = sharp[np.isfinite(sharp)]
    return {
        "brightness": float(picture.brightness[inside].mean()),
        "saturation": float(picture.saturation[inside].mean()),
        "sharpness": float(sharp.mean()) if len(sharp) else None,
        "motion": float(picture.change[inside].mean() / picture.frame_s),
    }


def first_and_last(start_s: float, stop_s: float) -> tuple[Window, Window] | None:
    """Return the first and the last window of a clip; None if two do not fit."""
    length = max(SHORTEST_WINDOW_S, WINDOW_SHARE * (stop_s - start_s))
    if 2 * length > stop_s - start_s:
        return None
    return (start_s, start_s + length), (stop_s - length, stop_s)


def tabulate_change(first: WindowLevels, last: WindowLevels) -> dict[str, WindowLevels]:
    """Put first and last levels side by side with their change, in the unit of each level."""
    table = {}
    for name, before in first.items():
        after = last[name]
        change = None if before is None or after is None else after - before
        table[name] = {"first": before, "last": after, "change": change}
    return table
