"""One page with the curves behind the figures: synchrony, seams by phase, and levels over time.

A reference is drawn in grey behind the file.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.extras import need
from omniforcing_jax.judge.media import Media
from omniforcing_jax.judge.report import find_seams
from omniforcing_jax.judge.seams import Blocks, Profile
from omniforcing_jax.judge.synchrony import QUIET, correlate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER, INK, FAINT, REFERENCE = "#0a0c12", "#e8ebf2", "#8b93a7", "#565e74"
COLOURS = ("#6ea8fe", "#ffb454", "#7bd88f")
SIZE = (15.0, 11.0)  # inches
CURVE_SECONDS = 12.0  # length, from the start, of the curves of onset strength and motion events
BIN = 1.0  # seconds; levels are averaged over this time


def _dress(axes: "Axes", title: str, unit: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(unit, color=FAINT, fontsize=8)
    axes.tick_params(which="both", colors=FAINT, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_color(REFERENCE)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, labelcolor=FAINT, frameon=False, loc="upper right")


def _draw_line(
    axes: "Axes",
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    name: str,
    colour: str,
    is_reference: bool,
) -> None:
    label = None if is_reference else name
    axes.plot(x, y, color=REFERENCE if is_reference else colour, label=label, linewidth=1.3)


def _draw_synchrony(curves: "Axes", lags: "Axes", media: Media, is_reference: bool) -> None:
    correlation = media.picture and media.sound and correlate(media.picture, media.sound)
    if not correlation:
        return
    if not is_reference:
        shown = correlation.times < correlation.times[0] + CURVE_SECONDS
        for name, curve, sign, colour in (
            ("onsets heard", correlation.heard, 1, COLOURS[0]),
            ("events seen, downwards", correlation.seen, -1, COLOURS[1]),
        ):
            level = sign * np.maximum(curve[shown], 0)
            curves.fill_between(correlation.times[shown], level, color=colour, label=name, linewidth=0)
    _draw_line(lags, 1e3 * correlation.lags, correlation.values, "correlation", COLOURS[0], is_reference)


def _draw_profiles(axes: "Axes", profiles: dict[str, Profile | None] | None, is_reference: bool) -> None:
    for (name, profile), colour in zip((profiles or {}).items(), COLOURS, strict=False):
        if profile is None:
            continue
        # from half a period before the border to half a period after it
        half = len(profile.ratios) // 2
        ratios = np.roll(profile.ratios, half)
        offsets = (np.arange(len(ratios)) - half) * profile.step_s
        _draw_line(axes, 1e3 * offsets, ratios, name, colour, is_reference)
    axes.set_yscale("log")


def _average(
    times: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Average over each second; return the middles of the seconds and the means."""
    index = ((times - times[0]) / BIN).astype(np.int64)
    count = np.bincount(index)
    means = np.bincount(index, weights=values) / np.maximum(1, count)
    return times[0] + (np.flatnonzero(count) + 0.5) * BIN, means[count > 0]


def _draw_levels(pictures: "Axes", sounds: "Axes", media: Media, is_reference: bool) -> None:
    if media.picture is not None:
        for name, colour in zip(("brightness", "saturation", "sharpness"), COLOURS, strict=True):
            values = np.nan_to_num(getattr(media.picture, name))
            _draw_line(pictures, *_average(media.picture.times, values), name, colour, is_reference)
    if media.sound is not None:
        times, power = _average(media.sound.times, media.sound.power)
        _draw_line(sounds, times, 10 * np.log10(np.maximum(power, QUIET)), "loudness", COLOURS[0], is_reference)


def draw_page(path: AnyPath, kind: str, media: Media, reference: Media | None, blocks: Blocks) -> None:
    """Write the page.

    Args:
        path: The file to write.
        kind: Format of the file: png, pdf or svg.
        media: The file that was judged.
        reference: The file that it was compared with, or None.
        blocks: Where the blocks of both end.
    """
    need("matplotlib", extra="judge")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    title = media.name if reference is None else f"{media.name}; in grey {reference.name}"
    figure.suptitle(title, color=INK, fontsize=15, x=0.01, ha="left")
    axes = figure.subplots(3, 2)
    for each in (reference, media):
        if each is None:
            continue
        is_reference = each is reference
        _draw_synchrony(axes[0, 0], axes[0, 1], each, is_reference)
        seams = find_seams(each, blocks)
        _draw_profiles(axes[1, 0], seams["picture"], is_reference)
        _draw_profiles(axes[1, 1], seams["sound"], is_reference)
        _draw_levels(axes[2, 0], axes[2, 1], each, is_reference)
    _dress(axes[0, 0], "onset strength and motion events", "s")
    _dress(axes[0, 1], "correlation by lag of the sound", "ms")
    _dress(axes[1, 0], "picture: steps by phase of the blocks, 1 is usual", "ms after the border")
    _dress(axes[1, 1], "sound: the same", "ms after the border")
    _dress(axes[2, 0], "picture, by second", "s")
    _dress(axes[2, 1], "loudness in dB of full scale, by second", "s")
    figure.savefig(path, format=kind, dpi=100, facecolor=PAPER)
