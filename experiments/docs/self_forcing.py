"""Idea 4: joint self-forcing in two passes, whose memory is that of one block."""

from experiments.docs.svg import MARGIN, Drawing

BLOCKS, PERIOD, WIDE = 4, 239, 195
FIRST, SCORE, SECOND = 72, 186, 374  # y of the three parts


def draw() -> Drawing:
    """Draw both passes and the scoring between them."""
    picture = Drawing(960, 536, "Joint self-forcing distillation in two passes")
    _head(picture, FIRST, "Pass 1, no gradient: roll the clip out against the real cache")
    _head(picture, SECOND, "Pass 2: the blocks once more, one gradient each")
    for k in range(BLOCKS):
        x = MARGIN + k * PERIOD
        _rolled(picture, k, x)
        _pulled(picture, k, x)
    _score(picture)
    _bus(picture)
    picture.text(
        MARGIN,
        512,
        "No gradient crosses a block's border: history is a constant. No other denoise step is replayed.",
    )
    return picture


def _head(picture: Drawing, y: float, words: str) -> None:
    picture.text(MARGIN, y - 30, words, size=16, bold=1)


def _box(picture: Drawing, x: float, y: float, width: float, fill: str, words: str, ink: str = "ink") -> None:
    picture.rect(x, y, width, 30, fill, radius=4)
    picture.text(x + width / 2, y + 20, words, size=12, anchor="middle", fill=ink)


def _rolled(picture: Drawing, k: int, x: float) -> None:
    """Draw block k of the first pass: denoise to the exit step, keep, commit."""
    _box(picture, x, FIRST, WIDE, "now-pale", f"block {k}: denoise to exit step")
    _box(picture, x, FIRST + 36, 106, "video-pale", "keep input, x0")
    _box(picture, x + 112, FIRST + 36, WIDE - 112, "faint", "clean pass")
    _hand_over(picture, k, x, FIRST)
    picture.line([(x + 53, FIRST + 68), (x + 53, SCORE - 17)], "soft", arrow=1)


def _hand_over(picture: Drawing, k: int, x: float, y: float) -> None:
    """Draw the cache that goes to the next block."""
    if k == BLOCKS - 1:
        return
    middle = x + (WIDE + PERIOD) / 2
    picture.line(
        [(x + WIDE + 2, y + 51), (middle, y + 51), (middle, y + 15), (x + PERIOD - 3, y + 15)], "soft", arrow=1
    )
    picture.text(middle + 2, y + 68, "cache", size=11, anchor="middle", fill="soft")


def _score(picture: Drawing) -> None:
    """Draw how the whole clip is scored."""
    wide = 960 - 2 * MARGIN
    picture.rect(MARGIN, SCORE - 14, wide, 96, "faint", radius=6)
    picture.text(MARGIN + 14, SCORE + 8, "Score the whole clip, both streams at one noise level", bold=1)
    _box(picture, MARGIN + 14, SCORE + 26, 152, "video-pale", "clip x0 + noise")
    _box(picture, MARGIN + 214, SCORE + 18, 210, "sink-pale", "teacher, guided: real")
    _box(picture, MARGIN + 214, SCORE + 50, 210, "audio-pale", "critic: fake")
    for y in (33, 65):
        picture.line([(MARGIN + 168, SCORE + 41), (MARGIN + 211, SCORE + y)], "soft", arrow=1)
        picture.line([(MARGIN + 426, SCORE + y), (MARGIN + 471, SCORE + 41)], "soft", arrow=1)
    _box(
        picture,
        MARGIN + 474,
        SCORE + 26,
        424,
        "now",
        "gradient = (fake - real) / mean |x0 - real|, split by blocks",
        "paper",
    )


def _pulled(picture: Drawing, k: int, x: float) -> None:
    """Draw block k of the second pass: the gradient of its exit step, then its clean pass."""
    picture.line([(x + 98, SECOND - 18), (x + 98, SECOND - 3)], "soft", arrow=1)
    _box(picture, x, SECOND, WIDE, "now-pale", f"block {k}: vjp of the exit step")
    _box(picture, x, SECOND + 36, WIDE, "faint", "clean pass with the kept x0")
    _hand_over(picture, k, x, SECOND)
    picture.line([(x + 98, SECOND + 68), (x + 98, SECOND + 80)], "soft", arrow=1)


def _bus(picture: Drawing) -> None:
    """Draw the way of the clip's gradient to the blocks, and of theirs to the sum."""
    x = MARGIN + 2 * PERIOD + 208
    picture.line([(x, SCORE + 58), (x, SECOND - 18)], "soft")
    picture.line([(MARGIN + 98, SECOND - 18), (MARGIN + 98 + (BLOCKS - 1) * PERIOD, SECOND - 18)], "soft")
    words = "sum: the gradient of the student's parameters, text projections included"
    _box(picture, MARGIN, SECOND + 84, 960 - 2 * MARGIN, "now", words, "paper")
