"""What chime's world looks and sounds like: the box, its balls and their tones.

Space is the unit box, x to the right, y up; frame n shows the instant n / 24 s (`layout.FRAME_RATE`).
A ball's colour decides its pitch.
"""

import numpy as np
from jaxtyping import Float, UInt8

GRAVITY = 3.0  # box units per second squared
RADIUS = 0.10  # of a ball, in box units

PALETTE = np.array(
    [[235, 45, 60], [255, 215, 50], [40, 190, 70], [70, 220, 240], [40, 60, 235], [205, 70, 225]], dtype=np.uint8
)
BACKGROUND = np.array([14, 16, 24], dtype=np.uint8)
BORDER = np.array([44, 48, 62], dtype=np.uint8)  # a line one 64th of the picture wide, along floor, walls and ceiling

PITCHES = (600, 700, 800, 900, 1000, 1100)  # Hz by colour, less than an octave; multiples of the mel rows per second

DECAY = 0.11  # seconds in which a tone falls by a factor of e


def pan(place: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n 2"]:
    """Return the gains left and right of a tone by its place, 0 at the left and 1 at the right; their power is 1."""
    angle = np.asarray(place) * np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def backdrop(size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Return the picture without balls: a dark plane in a thin frame."""
    line = max(1, size // 64)
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = BORDER
    picture[line:-line, line:-line] = BACKGROUND
    return picture
