"""What the study's cells say: tables of means and spreads over seeds, and two small plots.

It reads what study.py wrote and makes nothing anew. The switch to causal attention (part `sinks`) has losses instead
of clips, so it has a table and a plot of its own.

    python -m experiments.chime.study_report --folder runs/study --plot docs/study.png --switch-plot docs/sinks.png
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli_errors import refusing
from experiments.script import read_flags

JUDGED = ("sync_ms_p50", "sync_recall", "sync_precision", "count_accuracy", "colour_accuracy", "pitch_accuracy")
DRIFTING = ("sync_recall", "count_accuracy", "colour_error", "loudness_db")
PLOTTED = {
    "sync_recall": "#2e86ab",
    "sync_precision": "#66a182",
    "count_accuracy": "#edae49",
    "colour_accuracy": "#d1495b",
}

SWITCHED = ("first_grad_norm", "largest_grad_norm", "loss_last_50", "audio_last_50")
CURVES = {"grad_norm": "gradient norm", "loss": "loss"}
SMOOTH = 20  # steps that a point of a curve is the mean of

Groups = dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Report the study's cells."""

    folder: Path = Path("runs/study")
    """Folder of the study's cells."""
    plot: Path | None = None
    """File for the plot of the cells that judge clips (default: none)."""
    switch_plot: Path | None = None
    """File for the plot of the switch to causal attention (default: none)."""


def read(folder: Path, having: str) -> Groups:
    """Read all cells that have a figure, those that differ by their seed alone as one group, numbers in their order.

    Raises:
        ValueError: If one is no JSON.
    """
    groups: Groups = {}
    for path in sorted(
        folder.glob("*.json"), key=lambda path: [int(p) if p.isdigit() else p for p in _parts(path.stem)]
    ):
        try:
            cell = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"{path}: is not JSON") from None
        if having in cell:
            groups.setdefault(re.sub(r"-seed\d+$", "", path.stem), []).append(cell)
    return groups


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """Write the mean, and from where to where where there are several; "none" if one is missing."""
    found = list(values)
    if not found or None in found:
        return "none"
    known = [value for value in found if value is not None]
    mean = f"{sum(known) / len(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def change(cell: dict[str, Any], name: str) -> float | None:
    """Return by how much a figure grows from the first seconds to the last; None where it is not known."""
    drift = cell["drift"]
    if drift is None or drift["first"][name] is None or drift["last"][name] is None:
        return None
    return drift["last"][name] - drift["first"][name]


def speed(groups: Groups, name: str) -> float | None:
    """Return frames per second of processor time, relative to the first group of the same part."""
    first = next(other for other in groups if other.partition("-")[0] == name.partition("-")[0])
    rates: list[list[Any]] = [
        [cell.get("frames_per_processor_second") for cell in groups[group]] for group in (name, first)
    ]
    if any(rate is None for group in rates for rate in group):
        return None
    mine, reference = (sum(group) / len(group) for group in rates)
    return mine / reference


def table(groups: Groups) -> str:
    """Write a row of Markdown per group: figures, their change within the clips, speed relative to the part's first."""
    head = ["cell", *JUDGED, *(f"{name}, last - first" for name in DRIFTING), "speed"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, cells in groups.items():
        figures = [spread((cell[figure] for cell in cells), 1 if "ms" in figure else 2) for figure in JUDGED]
        changes = [spread(change(cell, figure) for cell in cells) for figure in DRIFTING]
        lines.append(f"| {name} | {' | '.join([*figures, *changes, spread([speed(groups, name)])])} |")
    return "\n".join(lines)


def draw(path: Path, groups: Groups) -> None:
    """Draw four figures of every group, a panel per part (and per student), seeds as bars from least to most."""
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    for name in groups:
        panels.setdefault(name.rpartition("-")[0], []).append(name)
    figure = Figure(figsize=(3.4 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (panel, names) in zip(axes, panels.items(), strict=True):
        for shift, (judged, colour) in enumerate(PLOTTED.items()):
            for place, name in enumerate(names):
                values = [cell[judged] for cell in groups[name] if cell[judged] is not None]
                if not values:
                    continue
                x, mean = place + 0.08 * shift, sum(values) / len(values)
                ax.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.5)
                ax.plot(x, mean, "o", color=colour, markersize=5, label=judged.replace("_", " ") if not place else None)
        ax.set_xticks([place + 0.12 for place in range(len(names))], [name.rpartition("-")[2] for name in names])
        ax.set_title(panel.replace("-", ", "), fontsize=10)
        ax.set_ylim(0, 1.03)
        ax.grid(alpha=0.2, axis="y")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def switch_table(groups: Groups) -> str:
    """Write a row of Markdown per layout and number of sinks."""
    lines = ["| " + " | ".join(["cell", *SWITCHED]) + " |", "|---" * (1 + len(SWITCHED)) + "|"]
    for name, cells in groups.items():
        figures = [spread((cell[figure] for cell in cells), 3) for figure in SWITCHED]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def draw_switch(path: Path, groups: Groups) -> None:
    """Draw gradient norm and loss over the steps, a row per layout, a line per number of sinks: means over seeds."""
    from matplotlib.figure import Figure

    layouts = list(dict.fromkeys(name.rpartition("-")[0] for name in groups))
    figure = Figure(figsize=(4 * len(CURVES), 2.8 * len(layouts)), layout="constrained")
    axes = figure.subplots(len(layouts), len(CURVES), squeeze=False)
    for row, layout in zip(axes, layouts, strict=True):
        for ax, (curve, label) in zip(row, CURVES.items(), strict=True):
            for name in (name for name in groups if name.rpartition("-")[0] == layout):
                mean = np.mean([cell[curve] for cell in groups[name]], axis=0)
                smooth = np.convolve(mean, np.full(SMOOTH, 1 / SMOOTH), mode="valid")
                ax.plot(np.arange(len(smooth)) + SMOOTH, smooth, linewidth=1.2, label=name.rpartition("-")[2])
            ax.set_title(f"{layout.partition('-')[2]}: {label}", fontsize=10)
            ax.grid(alpha=0.2)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8, title="sinks", title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(arguments: Arguments) -> None:
    """Print the tables and draw the plots; bad input is one line on stderr and exit code 2."""
    with refusing(arguments.plot, arguments.switch_plot):
        clips, switches = (read(arguments.folder, having) for having in ("sync_recall", "first_grad_norm"))
        wanted = {"--plot": (arguments.plot, clips), "--switch-plot": (arguments.switch_plot, switches)}
        for flag, (path, groups) in wanted.items():
            if path is not None and not groups:
                raise ValueError(f"{flag} {path}: {arguments.folder} has no cells for it")
        if not clips and not switches:
            raise ValueError(f"{arguments.folder}: no cells of the study")
        if clips:
            print(table(clips))
        if switches:
            print(switch_table(switches))
        if arguments.plot is not None:
            draw(arguments.plot, clips)
        if arguments.switch_plot is not None:
            draw_switch(arguments.switch_plot, switches)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
