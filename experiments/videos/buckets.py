"""Buckets: the sizes and lengths of training clips. Clips of one bucket have equal shapes, so they share a program."""

import math
from typing import NamedTuple

from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.strict_json import require


class Bucket(NamedTuple):
    """Height and width in pixels, and length in whole seconds; a clip has one frame more than its seconds."""

    height: int
    width: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}-{self.seconds}s"

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return FRAME_RATE * self.seconds + 1


class Piece(NamedTuple):
    """A clip of a video: its bucket and the second at which it begins, in the file's clock."""

    bucket: Bucket
    start_s: float


def parse_sizes(texts: tuple[str, ...], side: int) -> tuple[tuple[int, int], ...]:
    """Read sizes as `512x768`, height first.

    Args:
        texts: The sizes.
        side: Pixels by which both must be divisible.

    Raises:
        ValueError: One is no size, or cannot be cut into latents; names it.
    """
    sizes = []
    for text in texts:
        parts = text.lower().split("x")
        fits = len(parts) == 2 and all(part.isdecimal() and 0 < int(part) < 2**16 for part in parts)
        require(fits, "sizes", text, "must be HEIGHTxWIDTH in pixels, such as 512x768")
        height, width = map(int, parts)
        require(height % side == 0 == width % side, "sizes", text, f"both must be multiples of {side} pixels")
        sizes.append((height, width))
    return tuple(sizes)


def choose_size(shown: tuple[int, int], sizes: tuple[tuple[int, int], ...], most: float) -> tuple[int, int] | None:
    """Choose the size whose shape is nearest to a picture's, the larger of equal ones.

    Args:
        shown: Height and width of the picture.
        sizes: The sizes to choose from.
        most: Factor by which a picture may be enlarged.

    Returns:
        None if the picture is too small for all of them.
    """

    def enlarged(size: tuple[int, int]) -> float:
        return max(size[0] / shown[0], size[1] / shown[1])

    def distance(size: tuple[int, int]) -> float:
        return round(abs(math.log(size[0] / size[1] * shown[1] / shown[0])), 6)

    large = [size for size in sizes if enlarged(size) <= most]
    return min(large, key=lambda size: (distance(size), -size[0] * size[1]), default=None)


def cut(start_s: float, stop_s: float, size: tuple[int, int], lengths: tuple[int, ...]) -> list[Piece]:
    """Cut a scene into clips one after the other, each as long as fits; what is left at the end is dropped."""
    pieces = []
    while True:
        left = (stop_s - start_s) * FRAME_RATE + 1e-3
        length = max((each for each in lengths if FRAME_RATE * each + 1 <= left), default=None)
        if length is None:
            return pieces
        pieces.append(Piece(Bucket(*size, length), start_s))
        start_s += (FRAME_RATE * length + 1) / FRAME_RATE
