"""A prompt that changes in mid-stream: is the new one seen and heard at once, what shows, what does it cost?

Each stream has one prompt for some seconds and then another, with other colours and another number of balls. A change
counts if number, colours and pitches are exactly those of the new prompt. `at_once` is the two seconds after the
border, in which a ball strikes something at least every 1.4 s. `to_the_end` is all that follows. Seams are the
judge's: what stands out at the border, over all streams, against other places, and the same for ordinary borders. With
`--bridge` the empty prompt comes first for some blocks, so that the old one is let go before the new one enters. The
border is then the new prompt's.

Hardware: two CPU cores, about four minutes.

    python -m experiments.chime.prompt_change --json out/prompt_change.json
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.chime.judge.sources import load
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.film import Film, join_film
from omniforcing_jax.chime.prompts import COLOURS, parse, phrase
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.io import machine
from omniforcing_jax.judge import seams
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline.checks import student_sampler
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.stream.prompt_schedule import ScheduledPrompt, follow_schedule, plan_prompt_schedule
from omniforcing_jax.stream.start import open_stream

AT_ONCE = 2.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Change prompts in mid-stream and judge what is seen and heard."""

    count: int = 10
    """Streams."""
    at: int = 6
    """Second at which the prompt changes."""
    seconds: int = 12
    """Length of each stream, in seconds."""
    recompute: tuple[int, ...] = (0, 1, 3, 5)
    """Past blocks that are recomputed under the new prompt, newest first, one or several counts."""
    bridge: int = 0
    """Blocks of one second under the empty prompt between the two."""
    weights: Path = CHIME_WEIGHTS / "student"
    """Weights folder of the student."""
    seed: int = 0
    """Random seed of prompts and noise."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


def draw_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Draw pairs of prompts without a common colour and with different numbers of balls."""
    rng, pairs = np.random.default_rng([seed, 0x636867]), []
    for _ in range(count):
        colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
        first, second = rng.permutation(3)[:2] + 1
        pairs.append((phrase(colours[:first], rng), phrase(colours[first : first + second], rng)))
    return pairs


def plan_change(sampler: SamplerConfig, arguments: Arguments, prompt: str) -> tuple[ScheduledPrompt, ...]:
    """Schedule a prompt after its bridge, if any."""
    border = arguments.at + arguments.bridge
    bridge = [(arguments.at, "")] if arguments.bridge else []
    return plan_prompt_schedule(sampler, [*bridge, (border, prompt)], arguments.seconds)


class Stopwatch:
    """A trace that measures from a new text to the last past block that was made again under it."""

    def __init__(self) -> None:
        self.began, self.ms = 0.0, 0.0

    def __call__(self, step: str, block: int, outputs: PyTree) -> None:
        """Wait for what a change makes, and for nothing else."""
        if block and step in ("text", "recompute"):
            jax.block_until_ready(outputs)
            self.began = time.perf_counter() if step == "text" else self.began
            self.ms = 1e3 * (time.perf_counter() - self.began)


def make_stream(
    pipeline: Pipeline, arguments: Arguments, first: str, schedule: Sequence[ScheduledPrompt], recompute: int, seed: int
) -> tuple[Film, float]:
    """Stream one clip; returns it and the milliseconds that its change took."""
    watch = Stopwatch()
    stream = open_stream(pipeline, first, seconds=arguments.seconds, seed=seed, trace=watch)
    return join_film(list(follow_schedule(stream, schedule, recompute))), watch.ms


def pool_seams(clips: Sequence[Film], places_s: Sequence[float]) -> dict[str, dict[str, float] | None]:
    """Judge borders at the given seconds in all clips together, through MP4 files, as the judge compares them."""
    pooled: dict[str, list[tuple[seams.Measure, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (video, audio, rate) in enumerate(clips):
            file = Path(folder) / f"{i}.mp4"
            write_mp4(file, video, audio, frame_rate=FRAME_RATE, sample_rate=rate)
            heard = read_media(file)
            if heard.picture is None or heard.sound is None:
                raise ValueError(f"{file.name}: picture or sound was lost in the file")
            at = heard.start_s + np.asarray(places_s)
            for name, measure in seams.picture_measures(heard.picture).items():
                pooled.setdefault(name, []).append((measure, seams.picture_places(heard.picture, at)))
            for name, measure in seams.sound_measures(heard.sound).items():
                pooled.setdefault(name, []).append((measure, seams.sound_places(heard.sound, at)))
    return {name: _profile(parts) for name, parts in pooled.items()}


def _profile(parts: list[tuple[seams.Measure, np.ndarray]]) -> dict[str, float] | None:
    """Lay all clips end to end; their joints are far from any border that is judged."""
    starts = np.cumsum([0, *(len(measure.sizes) for measure, _ in parts)])
    sizes = np.concatenate([measure.sizes for measure, _ in parts])
    places = np.concatenate([start + places for start, (_, places) in zip(starts, parts, strict=False)])
    kind = parts[0][0].kind
    found = seams.profile(sizes, places, round(1 / kind.step_s), kind)
    return None if found is None else found.figure()


def judge_depth(pipeline: Pipeline, arguments: Arguments, recompute: int) -> dict[str, Any]:
    """Make all streams with so many past blocks made again, and judge them."""
    layout_start = 1 / FRAME_RATE  # the first block is one frame long
    changed = arguments.at + arguments.bridge
    border, end = changed + layout_start, arguments.seconds + layout_start
    clips, judged, taken = [], [], []
    for i, (first, second) in enumerate(draw_pairs(arguments.count, arguments.seed)):
        schedule = plan_change(student_sampler(pipeline.config), arguments, second)
        film, ms = make_stream(pipeline, arguments, first, schedule, recompute, arguments.seed + i)
        clips.append(film)
        taken.append(ms)
        judged.append(metrics.perceive(film, parse(second)))

    def share(stop: float) -> float:
        agree = [metrics.adherence([clip], [(border, stop)]) for clip in judged]
        return statistics.mean(figures["adherence"] == 1 for figures in agree)

    def mean(name: str) -> float:
        return metrics.adherence(judged, [(border, border + AT_ONCE)] * len(judged))[name] or 0.0

    between = range(arguments.at, changed + 1)
    ordinary = [second + layout_start for second in range(2, arguments.seconds - 1) if second not in between]
    return {
        "recompute": recompute,
        "bridge": arguments.bridge,
        "change_ms": statistics.median(taken),
        "at_once": share(border + AT_ONCE),
        "at_once_count": mean("count_accuracy"),
        "at_once_colour": mean("colour_accuracy"),
        "at_once_pitch": mean("pitch_accuracy"),
        "to_the_end": share(end),
        "seams_at_change": pool_seams(clips, [border]),
        "seams_elsewhere": pool_seams(clips, ordinary),
    }


def main(arguments: Arguments) -> None:
    """Print a line per depth; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing(arguments.json):
        pipeline = load(arguments.weights)
        rows = []
        for recompute in arguments.recompute:
            rows.append(judge_depth(pipeline, arguments, recompute))
            print(json.dumps(rows[-1]), flush=True)
        keep_figures(arguments.json, rows)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
