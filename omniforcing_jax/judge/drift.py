"""What a part of a clip is like, and how its last seconds differ from its first."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.sound import Sound, centres

SHARE, LEAST = 0.15, 5.0  # a window is this share of the clip, and at least so many seconds
SILENCE = -80.0  # dB of full scale, said of whatever is quieter
SPAN = 40.0  # dB below the strongest band at which the tilt stops to look
QUIETEST = 10  # percentile of the moments that is called noise
TILT_RANGE = (100.0, 7000.0)  # Hz

Figures = dict[str, float | None]
Window = tuple[float, float]  # seconds, in the file's clock


def _decibels(power: float) -> float:
    return max(SILENCE, 10 * float(np.log10(max(power, 1e-30))))


def _tilt(mel: Float[np.ndarray, " bands"]) -> float | None:
    """Return the slope of a spectrum in dB per octave; None of silence."""
    if not mel.any():
        return None
    frequency = centres()
    density = 10 * np.log10(np.maximum(mel / np.gradient(frequency), 1e-30))
    density = np.maximum(density, density.max() - SPAN)
    used = (frequency > TILT_RANGE[0]) & (frequency < TILT_RANGE[1])
    return float(np.polyfit(np.log2(frequency[used]), density[used], 1)[0])


def sound_state(sound: Sound, window: Window) -> Figures:
    """Measure the sound in a window.

    `loudness_db` is its root mean square in dB of full scale; `tilt_db_per_octave` the slope of its mean mel spectrum
    (power per Hz) from 100 Hz to 7 kHz; `noise_floor_db` the power that is left if each band has its quietest tenth.
    Nothing is said to be below -80 dB. Of a window without a moment all are None, of digital silence the tilt is.
    """
    inside = (sound.times >= window[0]) & (sound.times < window[1])
    if not inside.any():
        return dict.fromkeys(("loudness_db", "tilt_db_per_octave", "noise_floor_db"))
    mel = sound.mel[inside].astype(np.float64)
    return {
        "loudness_db": _decibels(float(sound.power[inside].mean())),
        "tilt_db_per_octave": _tilt(mel.mean(0)),
        "noise_floor_db": _decibels(float(np.percentile(mel, QUIETEST, axis=0).sum())),
    }


def picture_state(picture: Picture, window: Window) -> Figures:
    """Measure the picture in a window: `look.Picture` says what brightness, saturation and sharpness are.

    `motion` is the mean change of luma per second. Of a window without two frames all are None.
    """
    inside = (picture.times >= window[0]) & (picture.times < window[1])
    inside[0] = False  # what the first frame changes is not known
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


def ends(start_s: float, stop_s: float) -> tuple[Window, Window] | None:
    """Return the first and the last window of a clip; None if two do not fit."""
    length = max(LEAST, SHARE * (stop_s - start_s))
    if 2 * length > stop_s - start_s:
        return None
    return (start_s, start_s + length), (stop_s - length, stop_s)


def compare(first: Mapping[str, float | None], last: Mapping[str, float | None]) -> dict[str, dict[str, float | None]]:
    """Put first and last side by side with their change: in the measure's unit, which for sound is dB."""
    table = {}
    for name, before in first.items():
        after = last[name]
        change = None if before is None or after is None else after - before
        table[name] = {"first": before, "last": after, "change": change}
    return table
