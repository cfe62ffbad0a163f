"""What eight bits cost chime: the same prompts and seeds in float32, bfloat16, int8 and float8, judged in one table.

Eight bits are of the weights and of what they are multiplied by (docs/weights.md), of the cache (docs/stream.md), or of
both; everything else is float32 there, so that nothing but eight bits differs from the first column. Chime's figures
pool all clips. Those of the judge are means over clips, of files as `omniforcing judge` reads them. `psnr_db` compares
pixels with the first column's; a stream goes its own way after a while, as it would from another seed, so it says how
soon and not how bad.

Hardware: two CPU cores. Chime is small: speed is not the question here.
Expect: eight bits within the noise of 160 prompts.

    python -m experiments.chime.eight_bits --prompts 160 --json out/eight_bits.json
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chime.judge.sources import read_prompts, read_request
from experiments.cli_errors import report
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.film import Film, join_film
from omniforcing_jax.io import machine
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.judge.report import judge_media
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.strict_json import require

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"weights_dtype": "int8"},
    "float8": {"weights_dtype": "float8"},
    "int8 cache": {"cache_dtype": "int8"},
    "float8 cache": {"cache_dtype": "float8"},
    "both int8": {"weights_dtype": "int8", "cache_dtype": "int8"},
}
OF_STREAM = ("cache_dtype",)  # what weights are loaded without
CHIME = ("sync_ms_p50", "sync_ms_p95", "sync_recall", "sync_precision")
AGREEMENT = ("count_accuracy", "colour_accuracy", "pitch_accuracy")
STATE = ("colour_error", "loudness_db", "noise_floor_db")
JUDGED = ("correlation", "brightness", "saturation", "sharpness", "motion", "tilt_db_per_octave")
SEAM = "worst_seam"
PSNR = "psnr_db"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Judge chime's stream in float32, bfloat16 and eight bits."""

    prompts: str = "160"
    """Text file with one prompt per line, or how many to draw."""
    seconds: int = 5
    """Length of each clip."""
    seed: int = 0
    """Random seed of prompts and noise."""
    weights: Path = CHIME_WEIGHTS / "student"
    """Weights folder of a student of chime that is not in eight bits."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Columns of the table; pixels are compared with the first one."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


def run(arguments: Arguments) -> dict[str, dict[str, float | None]]:
    """Make and judge the clips of every variant.

    Raises:
        ValueError: In one line, whatever is wrong with the arguments.
    """
    require(arguments.seconds >= 1, "seconds", arguments.seconds, "must be at least 1")
    for name in arguments.variants:
        require(name in VARIANTS, "variants", name, f"must be some of {', '.join(VARIANTS)}")
    prompts = read_prompts(arguments.prompts, arguments.seed)
    figures: dict[str, dict[str, float | None]] = {}
    first: list[Film] = []
    for name in arguments.variants:
        how = VARIANTS[name]
        pipeline = load_pipeline(arguments.weights, **{key: how[key] for key in how if key not in OF_STREAM})
        films = _films(pipeline, name, prompts, how, arguments)
        first = first or films
        figures[name] = {**judge_films(films, prompts), PSNR: _psnr(films, first) if films is not first else None}
    return figures


def _films(
    pipeline: Pipeline, name: str, prompts: Sequence[str], how: dict[str, Any], arguments: Arguments
) -> list[Film]:
    """Stream a clip for each prompt, with the seeds of `experiments.chime.evaluate`."""
    with Bar(f"streaming in {name}", len(prompts), "clips") as bar:
        return [
            join_film(list(open_stream(pipeline, prompt, arguments.seconds, arguments.seed + 1000 * index, **how)))
            for index, prompt in enumerate(bar.over(prompts))
        ]


def judge_films(films: Sequence[Film], prompts: Sequence[str]) -> dict[str, float | None]:
    """Judge clips by chime's detectors and by the judge of files."""
    judged = [metrics.perceive(film, read_request(prompt)) for film, prompt in zip(films, prompts, strict=True)]
    windows = [(0.0, clip.picture.seconds) for clip in judged]
    found = {**metrics.judge_clips(judged), **metrics.state(judged, windows)}
    with tempfile.TemporaryDirectory() as folder:
        files = [_judge_file(film, Path(folder) / "clip.mp4") for film in films]
    means = {name: _mean([each[name] for each in files]) for name in (*JUDGED, SEAM)}
    return {name: found[name] for name in (*CHIME, *AGREEMENT, *STATE)} | means


def _judge_file(film: Film, file: Path) -> dict[str, float | None]:
    """Return the judge's measures of a clip: levels, correlation, and the worst border over the worst other place."""
    write_mp4(file, film.video, film.audio, frame_rate=FRAME_RATE, sample_rate=film.sample_rate)
    figures = judge_media(read_media(file), Blocks())
    levels, seams = figures["levels"], figures["seams"]
    every = [each for stream in ("picture", "sound") for each in (seams[stream] or {}).values() if each is not None]
    worst = max((each["ratio"] / each["highest_elsewhere"] for each in every), default=None)
    known = {**(figures["synchrony"] or {}), **(levels["picture"] or {}), **(levels["sound"] or {}), SEAM: worst}
    return {name: known.get(name) for name in (*JUDGED, SEAM)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _psnr(films: Sequence[Film], reference: Sequence[Film]) -> float:
    """Return the median over clips of the ratio, in dB, of full scale to the difference of the pixels."""
    errors = [np.mean(np.square(a.video.astype(np.float32) - b.video)) for a, b in zip(films, reference, strict=True)]
    return float(np.median([20 * np.log10(255) - 10 * np.log10(max(error, 1e-9)) for error in errors]))


def tabulate(figures: dict[str, dict[str, float | None]]) -> list[str]:
    """Format the figures as a Markdown table."""
    names = list(figures)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in figures[names[0]]:
        cells = ["" if figures[name][row] is None else f"{figures[name][row]:.3g}" for name in names]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def main(arguments: Arguments) -> None:
    """Print the table, and write the figures if asked to; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    report(arguments.json, partial(run, arguments), tabulate)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
