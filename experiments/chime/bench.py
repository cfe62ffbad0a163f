"""The bench that claims about chime are made on: 160 prompts for each of three seeds, every figure with its interval.

Prompts, worlds and noise follow from the seeds alone, so two networks are judged on the same requests. An interval is
a 95 % bootstrap over clips. It says nothing of another training: for that, train again and compare.

Hardware: two CPU cores; truth takes about five minutes, a student and a teacher longer.
Expect: a Markdown table on stdout, and the same figures as JSON.

    python -m experiments.chime.bench --source truth --json out/bench.json
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.chime.judge.sources import SOURCES, ClipOptions, SourceOptions, read_request, refuse_unused
from experiments.cli_errors import report
from experiments.script import read_flags
from omniforcing_jax.chime.detect import Event
from omniforcing_jax.chime.estimate import Values, estimate, estimate_change, pool
from omniforcing_jax.chime.figures import FIGURES, values_of
from omniforcing_jax.chime.metrics import cut, drift_window, perceive
from omniforcing_jax.chime.prompts import sample_prompts
from omniforcing_jax.chime.rise import FALSE_ALARM, measure_rises
from omniforcing_jax.io.progress import Bar


class Judged(NamedTuple):
    """What a clip adds to each figure, as a whole and by its first and its last seconds, and its onsets."""

    whole: dict[str, Values]
    first: dict[str, Values] | None  # None for a clip that is too short for a drift
    last: dict[str, Values] | None
    onsets: list[Event]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(SourceOptions):
    """Judge a source of clips on the fixed bench."""

    source: Literal["truth", "codecs", "teacher", "student"]
    """Whose clips to judge. "codecs" is truth that was encoded and decoded."""
    prompts: int = 160
    """Prompts of each seed; claims are made on 160."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of prompts, worlds and noise."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""

    def __post_init__(self) -> None:
        """Refuse counts that are no bench.

        Raises:
            ValueError: Names flag and value.
        """
        if self.prompts < 1 or self.seconds < 1:
            name, value = ("prompts", self.prompts) if self.prompts < 1 else ("seconds", self.seconds)
            raise ValueError(f"--{name} {value}: must be at least 1")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: must be distinct numbers from 0 up")


def judge_seed(arguments: Arguments, seed: int) -> Iterator[Judged]:
    """Make the clips of a seed and judge them, one in memory at a time."""
    prompts = sample_prompts(arguments.prompts, seed)
    shared = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(SourceOptions)}
    clips = SOURCES[arguments.source](prompts, ClipOptions(seed=seed, **shared))
    with Bar(f"judging seed {seed}", len(prompts), "clips") as bar:
        for film, prompt in zip(bar.over(clips), prompts, strict=True):
            clip = perceive(film, read_request(prompt))
            length = clip.picture.seconds
            window = drift_window(length)
            ends = [] if window is None else [(0.0, window), (length - window, length)]
            first, last = (values_of(cut(clip, *end)) for end in ends) if ends else (None, None)
            yield Judged(values_of(clip), first, last, clip.sound.onsets)


def run(arguments: Arguments) -> dict[str, Any]:
    """Judge all seeds, and pool them.

    Raises:
        ValueError: If --weights is no folder, or holds no such network, or a flag is not of this source.
    """
    refuse_unused(arguments.source, arguments)
    if arguments.weights is not None and not arguments.weights.is_dir():
        raise ValueError(f"--weights {arguments.weights}: no such folder")
    seeds = [list(judge_seed(arguments, seed)) for seed in arguments.seeds]
    clips = [clip for seed in seeds for clip in seed]
    return {
        "source": arguments.source,
        "weights": None if arguments.weights is None else str(arguments.weights),
        "seconds": arguments.seconds,
        "prompts": arguments.prompts,
        "seeds": list(arguments.seeds),
        "figures": {name: _figure(name, clips, seeds) for name in FIGURES},
        "drift": _drift(clips),
        "rise": measure_rises([clip.onsets for clip in clips]),
    }


def _figure(name: str, clips: Sequence[Judged], seeds: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """Return a figure of all clips with its interval, its unit, what it is of, and its value for each seed."""
    figure = FIGURES[name]
    whole = estimate([clip.whole[name] for clip in clips], figure.percentile)
    apart = [pool([clip.whole[name] for clip in seed], figure.percentile) for seed in seeds]
    return {**dataclasses.asdict(whole), "unit": figure.unit, "of": figure.of, "by_seed": apart}


def _drift(clips: Sequence[Judged]) -> dict[str, Any] | None:
    """Return by how much each figure changes from the first to the last seconds; None for short clips."""
    ends = [(clip.first, clip.last) for clip in clips if clip.first is not None and clip.last is not None]
    if not ends:
        return None
    columns = {name: [[end[name] for end in part] for part in zip(*ends, strict=True)] for name in FIGURES}
    return {
        name: dataclasses.asdict(estimate_change(first, last, FIGURES[name].percentile))
        for name, (first, last) in columns.items()
    }


def tabulate(figures: dict[str, Any]) -> list[str]:
    """Return a Markdown table with a row per figure, and what is said of onsets by their phase in a block."""
    drift = figures["drift"]
    clips = f"{figures['prompts']} prompts, seeds {', '.join(map(str, figures['seeds']))}, {figures['seconds']} s"
    head = [f"{figures['source']}: {clips}", "value", "95 % interval", "unit", "pooled over"]
    rows = [
        [name, _number(each["value"]), _interval(each), each["unit"], each["of"], *_changes(drift, name)]
        for name, each in figures["figures"].items()
    ]
    head += [] if drift is None else ["change, first to last seconds", "95 % interval"]
    return [*(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), "", _verdict(figures["rise"])]


def _verdict(rise: dict[str, Any]) -> str:
    """Say whether the rise of onsets depends on their phase."""
    if rise["odds_of_chance"] is None:
        return "There are too few onsets to say whether their rise depends on their phase in a block."
    verb = "depends" if rise["depends_on_phase"] else "does not depend"
    odds = f"p = {rise['odds_of_chance']:.4f}, false alarms once in {1 / FALSE_ALARM:.0f}"
    return f"The rise of onsets {verb} on their phase in a block: {odds}."


def _changes(drift: dict[str, Any] | None, name: str) -> list[str]:
    return [] if drift is None else [_number(drift[name]["value"]), _interval(drift[name])]


def _interval(estimate: dict[str, Any]) -> str:
    return f"{_number(estimate['low'])} to {_number(estimate['high'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main(arguments: Arguments) -> None:
    """Print the table, and write the figures if asked to; bad input is one line on stderr and exit code 2."""
    report(arguments.json, lambda: run(arguments), tabulate)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
