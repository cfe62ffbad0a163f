"""A clip on one page: frames over time, both channels of its sound below, impacts and onsets marked by colour.

The marks come from the detectors, not from the truth: a triangle where the picture shows an impact, a line where the
sound has an onset of that ball's pitch. A good clip has every line under a triangle of its colour.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.box import PALETTE
from omniforcing_jax.chime.detect import Event
from omniforcing_jax.chime.film import Film
from omniforcing_jax.io.extras import need
from omniforcing_jax.layout import FRAME_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP_SECONDS = 4.0
FRAMES_PER_STRIP = 10
PAPER, INK, FAINT, WAVE = "#0a0c12", "#e8ebf2", "#8b93a7", "#7686b5"
WIDTH = 15.0  # inches, like all that follow
MARGIN = 0.35
HEAD = 0.95  # title and subtitle
HEIGHTS = ((WIDTH - 2 * MARGIN) / FRAMES_PER_STRIP, 0.16, 0.95, 0.45)  # frames, room for triangles, sound, time axis


def _tint(colour: int) -> tuple[float, float, float]:
    """A ball's colour, lifted a little towards white: a saturated blue line is hard to see on dark paper."""
    red, green, blue = (PALETTE[colour] / 255 * 0.8 + 0.2).tolist()
    return red, green, blue


def _draw_frames(axes: "Axes", video: UInt8[np.ndarray, "F S S 3"], start: float) -> None:
    """Lay frames side by side, each centred on its time."""
    step = STRIP_SECONDS / FRAMES_PER_STRIP
    for i in range(FRAMES_PER_STRIP):
        middle = start + (i + 0.5) * step
        frame = round(middle * FRAME_RATE)
        if frame < len(video):
            left, right = middle - 0.485 * step, middle + 0.485 * step
            axes.imshow(video[frame], extent=(left, right, 0, 1), aspect="auto", interpolation="bicubic")
    axes.set(xlim=(start, start + STRIP_SECONDS), ylim=(0, 1))
    axes.axis("off")


def _draw_wave(axes: "Axes", film: Film, start: float, peak: float) -> None:
    """Fill each channel's envelope about its own line: left above, right below."""
    rate = film.sample_rate
    low = round(start * rate)
    part = film.audio[low : low + round(STRIP_SECONDS * rate)]
    hop = max(1, rate // 400)
    blocks = part[: len(part) // hop * hop].reshape(-1, hop, 2) / peak
    t = start + (np.arange(len(blocks)) + 0.5) * hop / rate
    for channel, line in ((0, 0.5), (1, -0.5)):
        top, bottom = (line + 0.46 * f(blocks[:, :, channel], axis=1) for f in (np.max, np.min))
        axes.fill_between(t, bottom, top, color=WAVE, linewidth=0)
        axes.text(
            -0.008,
            0.5 + line / 2,
            "LR"[channel],
            color=FAINT,
            fontsize=8,
            va="center",
            ha="right",
            transform=axes.transAxes,
        )
    axes.set(xlim=(start, start + STRIP_SECONDS), ylim=(-1, 1), yticks=[])
    axes.set_xticks(np.arange(start, start + STRIP_SECONDS + 0.01, 0.5))
    axes.xaxis.set_major_formatter(lambda second, _: f"{second:g} s")
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.set_facecolor(PAPER)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_marks(axes: "Axes", impacts: list[Event], onsets: list[Event], start: float) -> None:
    """Mark impacts by triangles on the upper rim and onsets by lines through both channels."""
    stop = start + STRIP_SECONDS
    for onset in (e for e in onsets if start <= e.time < stop):
        axes.vlines(onset.time, -1, 1, color=_tint(onset.colour), linewidth=1.4, alpha=0.9)
    for impact in (e for e in impacts if start <= e.time < stop):
        axes.plot(impact.time, 1.1, marker="v", markersize=8, color=_tint(impact.colour), clip_on=False, zorder=5)


def _subtitle(clip: metrics.Perceived) -> str:
    gap = metrics.judge_clips([clip])["sync_ms_p50"]
    apart = "none paired" if gap is None else f"half of the pairs within {gap:.1f} ms"
    return f"▼ {len(clip.picture.impacts)} impacts seen      | {len(clip.sound.onsets)} onsets heard      {apart}"


def write_contact_sheet(path: Path, film: Film, clip: metrics.Perceived, title: str) -> None:
    """Write the contact sheet of a clip as PNG (or whatever the name ends in).

    Args:
        path: The file; its folder must exist.
        film: The clip.
        clip: What was seen and heard in it.
        title: For instance the prompt.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    need("matplotlib", extra="judge")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strips = max(1, int(np.ceil(round((clip.picture.seconds - 1.5 / FRAME_RATE) / STRIP_SECONDS, 3))))
    height = HEAD + strips * sum(HEIGHTS)
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.text(MARGIN / WIDTH, 1 - 0.42 / height, title, color=INK, fontsize=17, va="center", weight="bold")
    figure.text(MARGIN / WIDTH, 1 - 0.74 / height, _subtitle(clip), color=FAINT, fontsize=10.5, va="center")
    peak = max(1e-3, float(np.abs(film.audio).max(initial=0)))
    for strip in range(strips):
        start, top = strip * STRIP_SECONDS, height - HEAD - strip * sum(HEIGHTS)
        rows = [(top - sum(HEIGHTS[: i + 1]), HEIGHTS[i]) for i in (0, 2)]
        boxes = [(MARGIN / WIDTH, low / height, 1 - 2 * MARGIN / WIDTH, tall / height) for low, tall in rows]
        _draw_frames(figure.add_axes(boxes[0]), film.video, start)
        axes = figure.add_axes(boxes[1])
        _draw_wave(axes, film, start, peak)
        _draw_marks(axes, clip.picture.impacts, clip.sound.onsets, start)
    figure.savefig(path, dpi=110, facecolor=PAPER)
