"""Left and right: how loud each side is, how much that changes, and whether sound comes from where one sees it made."""

import numpy as np
from jaxtyping import Float

from omniforcing_jax.judge.faults import find_motion
from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.sound import Sound
from omniforcing_jax.judge.synchrony import QUIET, onset_strength

NEAR_FRAMES = 3  # about a moment of sound: what one sees change in them is taken together
EVEN = 1e-3  # of the way from the middle to one side; sides that vary less do not vary
LATER = 2  # moments; a sound that has just begun is heard where it is after this time


def measure_stereo(picture: Picture | None, sound: Sound) -> dict[str, float | None] | None:
    """Compare the sides of a sound; None unless it has two channels.

    Returns:
        `level_difference_db`: level of the left channel over that of the right, over the whole file. `level_spread_db`:
        standard deviation of the same from moment to moment, each moment weighted by its power; 0 for mono.
        `place_correlation`: correlation of the side that onsets are heard on with the side on which one sees the motion
        change then, in [-1, 1]. It is near -1 if left and right are swapped, and None if either is always the same.
    """
    if sound.sides is None:
        return None
    left, right = np.maximum(sound.sides, QUIET).T
    difference = 10 * np.log10(left / right)
    mean = np.average(difference, weights=left + right)
    return {
        "level_difference_db": float(10 * np.log10(left.mean() / right.mean())),
        "level_spread_db": float(np.sqrt(np.average(np.square(difference - mean), weights=left + right))),
        "place_correlation": None if picture is None else _correlate_places(picture, sound, sound.sides),
    }


def _correlate_places(picture: Picture, sound: Sound, sides: Float[np.ndarray, "M 2"]) -> float | None:
    """Correlate, over the moments of the sound, its side with the side of the motion events near by.

    Sides run from -1, left, to 1, right. A moment counts by its onset strength times the strength of the events.
    """
    from scipy.ndimage import uniform_filter1d

    events = find_motion(picture)
    strength = uniform_filter1d(events, NEAR_FRAMES)
    leaning = uniform_filter1d(events * picture.event_side, NEAR_FRAMES)
    weight = np.interp(sound.times, picture.times, strength, left=0, right=0)
    seen = np.interp(sound.times, picture.times, leaning) / np.maximum(weight, 1e-12)
    amplitude = np.sqrt(np.maximum(sides, QUIET))
    heard = (amplitude[:, 1] - amplitude[:, 0]) / amplitude.sum(1)
    later = np.minimum(np.arange(len(heard)) + LATER, len(heard) - 1)
    return _correlation(heard[later], seen, weight * onset_strength(sound))


def _correlation(
    x: Float[np.ndarray, " M"], y: Float[np.ndarray, " M"], weight: Float[np.ndarray, " M"]
) -> float | None:
    """Return the weighted correlation; None where one of both does not vary."""
    if not weight.any():
        return None
    x, y = (each - np.average(each, weights=weight) for each in (x, y))
    spread = np.average(x * x, weights=weight) * np.average(y * y, weights=weight)
    return float(np.average(x * y, weights=weight) / np.sqrt(spread)) if spread > EVEN**4 else None
