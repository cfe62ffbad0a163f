"""Judge clips by their pixels and samples: rendered truth, what codecs leave of it, teacher, student, or a file.

Sources are iterators of clips (judge/sources.py). Detectors and metrics are in `omniforcing_jax/chime`. With
`--swap-sound` every picture is judged with the next clip's sound, which shows what chance gives.

    python -m experiments.chime.evaluate --source truth --prompts 32 --seconds 5 --seed 0 --json out/truth.json
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments.chime.judge.sources import SOURCES, ClipOptions, read_prompts, read_request, refuse_unused
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.figures import pool_clips
from omniforcing_jax.chime.film import Film, read_film
from omniforcing_jax.chime.prompts import COLOURS, Request
from omniforcing_jax.chime.rise import measure_rises
from omniforcing_jax.io.progress import Bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ClipOptions):
    """Judge clips by their pixels and samples only."""

    source: Literal["truth", "codecs", "teacher", "student"] | None = None
    """Whose clips to judge. "codecs" is truth that was encoded and decoded, the best that any generator can reach."""
    file: Path | None = None
    """Video file to judge instead of a source; --prompts may then name a file with its one prompt."""
    prompts: str | None = None
    """Text file with one prompt per line, or how many to draw (by default 32)."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""
    swap_sound: bool = False
    """Judge each picture with the sound of the next clip."""
    by_count: bool = False
    """Add figures for prompts of one, two and three balls apart, under the key `by_count`."""
    each: bool = False
    """Print a line per clip too."""


def plan(arguments: Arguments) -> tuple[Sequence[str], Sequence[Request | None], Iterator[Film]]:
    """Check everything that can be checked, then return prompts, what they ask for, and the clips, not yet made.

    Raises:
        ValueError: Whatever is wrong with the arguments, in one line.
    """
    if (arguments.source is None) == (arguments.file is None):
        raise ValueError("give one of --source and --file, not both or none")
    if arguments.seconds < 1:
        raise ValueError(f"--seconds {arguments.seconds}: must be at least 1")
    if arguments.file is not None:
        if not arguments.file.is_file():
            raise ValueError(f"--file {arguments.file}: no such file")
        if arguments.swap_sound:
            raise ValueError("--swap-sound: a single file has no other sound to swap with")
        prompts = [] if arguments.prompts is None else read_prompts(arguments.prompts, arguments.seed)
        if len(prompts) > 1 or (arguments.prompts or "").isdecimal():
            raise ValueError(f"--prompts {arguments.prompts}: with --file it must be a text file with one prompt")
        requests = [read_request(prompt) for prompt in prompts] or [None]
        return prompts or [str(arguments.file)], requests, iter([read_film(arguments.file)])
    refuse_unused(str(arguments.source), arguments)
    prompts = read_prompts(arguments.prompts or "32", arguments.seed)
    requests = [read_request(prompt) for prompt in prompts]
    if arguments.swap_sound and len(prompts) < 2:
        raise ValueError("--swap-sound: needs at least two prompts")
    if arguments.weights is not None and not arguments.weights.is_dir():
        raise ValueError(f"--weights {arguments.weights}: no such folder")
    return prompts, requests, SOURCES[str(arguments.source)](prompts, arguments)


def _describe(clip: metrics.Perceived, prompt: str) -> str:
    tracks, sound = clip.picture.tracks, clip.sound
    seen = " ".join(COLOURS[c] for c in tracks.colours())
    heard = " ".join(COLOURS[c] for c in metrics.pitches_heard(sound.onsets))
    pairs = len(metrics.match(clip.picture.impacts, sound.onsets))
    counts = f"{len(clip.picture.impacts)} impacts, {len(sound.onsets)} onsets, {pairs} pairs"
    return f"{prompt!r}: {tracks.count()} seen ({seen}), heard ({heard}), {counts}"


def run(arguments: Arguments, console: Console) -> dict[str, Any]:
    """Make and judge all clips, one in memory at a time."""
    prompts, requests, clips = plan(arguments)
    began = time.monotonic()
    with Bar("judging", len(prompts), "clips") as bar:
        judged = [metrics.perceive(film, request) for film, request in zip(bar.over(clips), requests, strict=True)]
    if arguments.swap_sound:
        others = judged[1:] + judged[:1]
        judged = [dataclasses.replace(clip, sound=other.sound) for clip, other in zip(judged, others, strict=True)]
    if arguments.each:
        for clip, prompt in zip(judged, prompts, strict=True):
            console.print(_describe(clip, prompt), highlight=False)
    figures = {**pool_clips(judged), **metrics.judge_clips(judged)}
    figures["rise"] = measure_rises([clip.sound.onsets for clip in judged])
    if arguments.by_count:
        figures["by_count"] = metrics.by_count(judged)
    console.print(f"{len(judged)} clips in {time.monotonic() - began:.1f} s", highlight=False)
    return figures


def main(arguments: Arguments) -> None:
    """Print the figures, and write them if asked to; bad input is one line on stderr and exit code 2."""
    console = Console(stderr=True, soft_wrap=True)
    with refusing(arguments.json):
        figures = run(arguments, console)
        print(json.dumps(figures, indent=2))
        keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
