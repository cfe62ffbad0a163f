"""Idea 1: both streams on one clock of blocks, and why block 0 is one latent of each."""

from fractions import Fraction

from experiments.docs.svg import MARGIN, Drawing
from omniforcing_jax.layout import (
    AUDIO_RATE,
    FRAME_RATE,
    FUSED,
    PIXELS_PER_LATENT,
    PREFIX,
    ROW_RATE,
    ROWS_PER_LATENT,
    VIDEO_RATE,
    Block,
    Layout,
)

WIDTH, HEIGHT = 960, 496
LEFT, SCALE = 136, 258  # pixels: where 0 s is, and of a second
BLOCKS = 4
BAR = 30


def video_span(t: int) -> tuple[float, float]:
    """Return start and end of video latent t in seconds: the frames that it decodes to."""
    return max(0, PIXELS_PER_LATENT * (t - 1) + 1) / FRAME_RATE, (PIXELS_PER_LATENT * t + 1) / FRAME_RATE


def audio_span(t: int) -> tuple[float, float]:
    """Return start and end of audio latent t in seconds: the mel rows that it decodes to."""
    return max(0, ROWS_PER_LATENT * (t - 1) + 1) / ROW_RATE, (ROWS_PER_LATENT * t + 1) / ROW_RATE


def draw() -> Drawing:
    """Draw both layouts over the first seconds."""
    picture = Drawing(WIDTH, HEIGHT, "Blocks of both streams on one clock of seconds")
    for layout, words, y in ((PREFIX, "Prefix layout, the paper's", 0), (FUSED, "Fused layout, the release's", 222)):
        picture.text(MARGIN, y + 40, _name(words, layout), size=16, bold=1)
        _ruler(picture, y + 66)
        _layout(picture, layout, y + 80)
    _skew(picture, 200)
    _reason(picture, 452)
    return picture


def _name(words: str, layout: Layout) -> str:
    return (
        f"{words}: block 0 is {layout.first_v} + {layout.first_a} latents, "
        f"every later block {layout.step_v} + {layout.step_a}"
    )


def _x(seconds: float) -> float:
    return LEFT + SCALE * seconds


def _seconds() -> int:
    return (WIDTH - LEFT - MARGIN) // SCALE


def _ruler(picture: Drawing, y: float) -> None:
    for second in range(_seconds() + 1):
        picture.text(_x(second), y, f"{second} s", size=12, anchor="middle", fill="soft")
        picture.line([(_x(second), y + 5), (_x(second), y + 96)], "soft", dash="2 4")


def _layout(picture: Drawing, layout: Layout, y: float) -> None:
    picture.text(MARGIN, y + 20, "video latents", fill="video", bold=1)
    picture.text(MARGIN, y + 20 + BAR + 10, "audio latents", fill="audio", bold=1)
    for k in range(BLOCKS):
        block = layout.block(k)
        if video_span(block.video_end - 1)[1] > _seconds() + 0.1:
            break
        _latents(picture, block, k, y)
        _bracket(picture, block, k, y + 2 * BAR + 18)


def _latents(picture: Drawing, block: Block, k: int, y: float) -> None:
    shade = "" if k % 2 else "-pale"
    for t in range(block.video_start, block.video_end):
        start, end = video_span(t)
        picture.rect(_x(start), y, SCALE * (end - start) - 1, BAR, f"video{shade}", radius=2)
        if end - start > 0.2:
            frames = round((end - start) * FRAME_RATE)
            fill = "paper" if k % 2 else "ink"
            picture.text(_x((start + end) / 2), y + 20, f"{frames} frames", size=11, anchor="middle", fill=fill)
    for t in range(block.audio_start, block.audio_end):
        start, end = audio_span(t)
        picture.rect(_x(start), y + BAR + 10, SCALE * (end - start) - 1, BAR, f"audio{shade}", radius=1)


def _bracket(picture: Drawing, block: Block, k: int, y: float) -> None:
    """Name a block under its latents; one that is too short for its name is named at the left, with an arrow."""
    start, end = video_span(block.video_start)[0], audio_span(block.audio_end - 1)[1]
    words = f"block {k}: {block.video_frames} + {block.audio_frames}"
    if end - start < 0.5:
        picture.text(MARGIN, y + 10, words, size=12, bold=1)
        picture.line(
            [(LEFT - 16, y + 6), (LEFT - 2, y + 6), (LEFT + 1, y + 4), (LEFT + 2, y - 4)], "soft", arrow=1, curve=1
        )
        return
    left, right = _x(start) + 2, _x(end) - 2
    picture.line([(left, y), (left, y + 6), (right, y + 6), (right, y)], "soft")
    picture.text((left + right) / 2, y + 22, words, size=12, anchor="middle", bold=1)


def _skew(picture: Drawing, y: float) -> None:
    """Say by how much picture and sound of a block end apart, which is the same for all blocks."""
    ends = [
        (video_span(PREFIX.block(k).video_end - 1)[1], audio_span(PREFIX.block(k).audio_end - 1)[1]) for k in (1, 9)
    ]
    apart, later = (round(1000 * (video - audio), 1) for video, audio in ends)
    if apart != later:
        raise ValueError(f"apart={apart}, {later}: picture and sound must not drift")
    words = (
        f"Picture and sound of a block end {apart} ms apart, at every block alike: nothing drifts, nothing is cut off."
    )
    picture.text(_x(0), y + 20, words, fill="soft")


def _reason(picture: Drawing, y: float) -> None:
    ratio = Fraction(AUDIO_RATE, VIDEO_RATE)
    whole, rest = divmod(ratio.numerator, ratio.denominator)
    lines = (
        f"One video latent is {PIXELS_PER_LATENT} frames, as long as {whole} and {rest}/{ratio.denominator} audio "
        f"latents. Three are as long as {3 * ratio} exactly: blocks are whole seconds.",
        "The first latent of each stream is different: one frame, one mel row. As a block of its own it keeps all "
        "later blocks whole.",
    )
    picture.lines(MARGIN, y, lines, 22)
