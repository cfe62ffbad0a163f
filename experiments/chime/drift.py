"""Minutes of one stream: how long does it stay what it was, by how much of its past a block sees?

For each window there are three streams. Block 0 is kept for ever and its keys are re-anchored; it is kept and its keys
stay where they were; or it is not kept. Audio sinks are always kept. Every minute is judged by pixels and samples
alone.

Hardware: two CPU cores, about two minutes per stream of ten minutes.

    python -m experiments.chime.drift --json out/drift.json --plot docs/drift.png
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from experiments.chime.judge.sources import load
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.film import join_film
from omniforcing_jax.chime.prompts import parse
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.checks import student_sampler
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.stream.start import open_stream

MINUTE = 60
SPAN = 5.0  # seconds over which number and colours are judged, as in clips of the trained length
KEEPING = {
    "kept, moves along": {"pinned": 1, "reanchor": True},
    "kept, stays behind": {"pinned": 1, "reanchor": False},
    "not kept": {"pinned": 0, "reanchor": True},
}
SHOWN = ("adherence", "sync_recall", "sync_precision", "colour_error", "loudness_db", "noise_floor_db")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Stream for minutes with windows of several lengths."""

    minutes: int = 10
    """Length of each stream, in minutes."""
    windows: tuple[int, ...] = (0, 1, 2)
    """Blocks that a block may see, itself included; 0 fills the horizon."""
    prompts: tuple[str, ...] = ("a red ball and a blue ball",)
    """What to show; the prompts are the rows of one batch."""
    weights: Path = CHIME_WEIGHTS / "student"
    """Weights folder of the student."""
    seed: int = 0
    """Random seed of the noise."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""
    plot: Path | None = None
    """File for the plot: PNG, PDF or SVG (default: none)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One minute of one setting, over all prompts."""

    window: int
    block_0: str
    minute: int
    figures: dict[str, float | None]


def judge_minute(clips: Sequence[metrics.Perceived]) -> dict[str, float | None]:
    """Judge a minute of every prompt together."""
    whole = [(0.0, clip.picture.seconds) for clip in clips]
    spans = np.arange(0, min(stop for _, stop in whole) - SPAN / 2, SPAN)
    pieces = [(clip, (float(start), float(start) + SPAN)) for clip in clips for start in spans]
    agreement = metrics.adherence([clip for clip, _ in pieces], [window for _, window in pieces])
    state = metrics.state(clips, whole)
    kept = ("colour_error", "loudness_db", "noise_floor_db")
    return {**metrics.synchrony(clips, whole), **agreement, **{name: state[name] for name in kept}}


def run(pipeline: Pipeline, arguments: Arguments, window: int, block_0: str) -> list[Row]:
    """Stream with one setting and judge minute after minute."""
    sampler = replace(student_sampler(pipeline.config), window=window, **KEEPING[block_0])
    static = replace(pipeline, config=replace(pipeline.config, sampler=sampler))
    stream = open_stream(static, arguments.prompts, seconds=arguments.minutes * MINUTE, seed=arguments.seed)
    next(stream)  # one frame, before the first second
    rows = []
    for minute in range(arguments.minutes):
        seconds = [next(stream) for _ in range(MINUTE)]
        rows_of_chunks = zip(arguments.prompts, zip(*seconds, strict=True), strict=True)
        clips = [metrics.perceive(join_film(list(chunks)), parse(prompt)) for prompt, chunks in rows_of_chunks]
        rows.append(Row(window=window, block_0=block_0, minute=minute + 1, figures=judge_minute(clips)))
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Write the first minute, the last and the mean of all for each setting, as Markdown."""
    lines = [
        "| window | block 0 | " + " | ".join(f"{name}: first, last, mean" for name in SHOWN) + " |",
        "|---|---" + "|---" * len(SHOWN) + "|",
    ]
    for window, block_0 in dict.fromkeys((row.window, row.block_0) for row in rows):
        mine = [row.figures for row in rows if (row.window, row.block_0) == (window, block_0)]
        cells = []
        for name in SHOWN:
            values = [figures[name] for figures in mine]
            known = [value for value in values if value is not None]
            mean = statistics.mean(known) if known else None
            cells.append(", ".join("none" if v is None else f"{v:.2f}" for v in (values[0], values[-1], mean)))
        lines.append(f"| {window or 'horizon'} | {block_0} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw each figure over the minutes, a line per setting."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 6.4), layout="constrained")
    colours = dict(zip(dict.fromkeys(row.window for row in rows), ("#d1495b", "#edae49", "#2e86ab"), strict=False))
    styles = dict(zip(KEEPING, ("-", "--", ":"), strict=True))
    for ax, name in zip(axes.flat, SHOWN, strict=True):
        for window, block_0 in dict.fromkeys((row.window, row.block_0) for row in rows):
            mine = [row for row in rows if (row.window, row.block_0) == (window, block_0)]
            values = [np.nan if row.figures[name] is None else row.figures[name] for row in mine]
            label = f"window {window or 'of the horizon'}, block 0 {block_0}"
            minutes = [row.minute for row in mine]
            ax.plot(minutes, values, color=colours.get(window, "#555555"), linestyle=styles[block_0], label=label)
        ax.set_title(name.replace("_", " "), fontsize=10)
        ax.set_xlabel("minute", fontsize=9)
        ax.grid(alpha=0.2)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)
    plt.close(figure)


def keep(rows: Sequence[Row], arguments: Arguments) -> None:
    """Write what there is so far: a run of all settings is long."""
    keep_figures(arguments.json, [asdict(row) for row in rows])
    if arguments.plot is not None:
        draw(arguments.plot, rows)


def main(arguments: Arguments) -> None:
    """Stream all settings, print a table; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing(arguments.json, arguments.plot):
        pipeline = load(arguments.weights)
        rows: list[Row] = []
        for window in arguments.windows:
            for block_0 in KEEPING:
                rows += run(pipeline, arguments, window, block_0)
                keep(rows, arguments)
        print(table(rows))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
