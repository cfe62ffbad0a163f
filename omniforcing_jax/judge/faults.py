"""Frames that should not be there: black ones, repeated ones, a picture that freezes, flashes.

Every figure is a fact of the file, not a verdict: a title card is black, and a still life repeats its frames.
"""

import numpy as np
from jaxtyping import Bool, Float

from omniforcing_jax.judge.picture import PAUSE_S, Picture

STILL = (
    1e-3  # mean |difference| of luma; a frame that changes less may repeat the last, as FFmpeg's freezedetect has it
)
STILL_PIXEL = 0.03  # |difference| of luma; it does not if a pixel changes more, however small what moves is
BLACK_SHARE = 0.98  # of the pixels; a frame with so many dark ones is black, as FFmpeg's blackdetect has it
ROUNDING = 1e-6  # of times of frames
FLASH = 0.1  # of full brightness; the least step there and back of a flash, as WCAG 2 has it


def find_black(picture: Picture) -> Bool[np.ndarray, " F"]:
    """Tell which frames are black."""
    return picture.dark >= BLACK_SHARE


def find_repeats(picture: Picture) -> Bool[np.ndarray, " F"]:
    """Tell which frames repeat the one before; the first does not.

    They are equal to a quarter of an 8-bit level on average, and to 8 levels anywhere: by so much a coder may go on to
    refine a picture that it shows again.
    """
    still = (picture.change < STILL) & (picture.largest < STILL_PIXEL)
    return still & (np.arange(len(still)) > 0)


def find_flashes(picture: Picture) -> Bool[np.ndarray, " F"]:
    """Tell which frames are in a flash: all brighter, or all darker, than both the frame before and the frame after.

    A flash lasts at most 0.15 s, and differs by at least a tenth of full brightness. Black frames are no flash.
    """
    from numpy.lib.stride_tricks import sliding_window_view

    light, found = picture.brightness, np.zeros(len(picture.brightness), bool)
    longest = int(PAUSE_S / picture.frame_s + ROUNDING)
    for length in range(1, min(longest, len(light) - 2) + 1):
        inside = sliding_window_view(light[1:-1], length)
        before, after = light[: len(inside)], light[length + 1 :]
        up = inside.min(1) - np.maximum(before, after)
        down = np.minimum(before, after) - inside.max(1)
        lasts = picture.times[length + 1 :] - picture.times[1 : len(inside) + 1]
        is_flash = (np.maximum(up, down) >= FLASH) & (lasts <= PAUSE_S + ROUNDING)
        for start in np.flatnonzero(is_flash):
            found[start + 1 : start + 1 + length] = True
    return found & ~find_black(picture)


def _runs(flags: Bool[np.ndarray, " F"]) -> tuple[np.ndarray, np.ndarray]:
    """Return where runs of true begin, and where they have ended."""
    steps = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)


def find_motion(picture: Picture) -> Float[np.ndarray, " F"]:
    """Return the motion events without those of flashes and of black frames, which move nothing and dwarf the rest."""
    from scipy.ndimage import binary_dilation

    return np.where(binary_dilation(find_flashes(picture) | find_black(picture)), 0, picture.event)


def find_faults(picture: Picture) -> dict[str, float]:
    """Return the figures of a picture.

    Returns:
        `black_share`: share of the frames that are black. `duplicate_share`: share of the frames, the first left out,
        that repeat the frame before. `freeze_s`: length in seconds of the longest run of such frames. `flashes`: number
        of flashes.
    """
    repeats = find_repeats(picture)
    starts, stops = _runs(repeats)
    ends = np.append(picture.times, picture.stop_s)
    return {
        "black_share": float(find_black(picture).mean()),
        "duplicate_share": float(repeats[1:].mean()),
        "freeze_s": float((ends[stops] - ends[starts]).max(initial=0)),
        "flashes": len(_runs(find_flashes(picture))[0]),
    }
