"""What a batch of streams is worth: its throughput beside that of one stream, in turns.

Both make whole blocks: denoise steps, clean pass, decoding, and the copy to the host. A turn is a block of each. Times
are medians over the turns after the second block, when all is compiled. A batch of N rows that takes as long as one
stream has N times its throughput. On a CPU that one stream keeps busy the ratio is near 1.

    python -m experiments.bench.batch --rows 4 --json out/batch.json
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.cli_errors import report
from experiments.script import read_flags
from omniforcing_jax.chime.prompts import sample_prompts
from omniforcing_jax.io import machine
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline import checks
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.strict_json import require

UNTIMED = 2  # blocks at first: both sizes of block are compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Time a batch of streams beside one stream."""

    json: Path | None = None
    """JSON file for the figures (default: none)."""
    weights: str = "chime"
    """Weights folder of a student whose words are chime's, or the name of shipped weights."""
    rows: int = 4
    """Streams of the batch."""
    blocks: int = 20
    """Blocks that are timed."""
    steps: int | None = None
    """Denoise steps per block (default: all that were trained)."""
    seed: int = 0
    """Random seed of prompts and noise."""


def measure(arguments: Arguments) -> dict[str, Any]:
    """Let one stream and a batch make a block each in turns.

    Raises:
        ValueError: In one line, whatever is wrong with the arguments.
    """
    require(arguments.rows >= 2, "rows", arguments.rows, "must be at least 2")
    require(arguments.blocks >= 1, "blocks", arguments.blocks, "must be at least 1")
    pipeline = checks.load(arguments.weights, checks.pipeline_config(arguments.weights), jnp.float32)
    prompts = sample_prompts(arguments.rows, arguments.seed)
    one = open_stream(pipeline, prompts[0], seed=arguments.seed, steps=arguments.steps)
    batch = open_stream(pipeline, prompts, seed=arguments.seed, steps=arguments.steps)
    times = time_in_turns(lambda: _wait(one), lambda: _wait(batch), arguments.blocks)
    one_s, batch_s = map(statistics.median, times)
    frames = FRAME_RATE * batch.static.sampler.layout.step_seconds
    return {
        "config": dataclasses.asdict(arguments) | {"json": None},
        "one_s": one_s,
        "batch_s": batch_s,
        "one_fps": frames / one_s,
        "batch_fps": arguments.rows * frames / batch_s,
        "ratio": arguments.rows * one_s / batch_s,
    }


def _wait(stream: Any) -> None:
    next(stream)
    jax.block_until_ready(stream.state.cache)


def time_in_turns(one: Callable[[], None], other: Callable[[], None], turns: int) -> tuple[list[float], list[float]]:
    """Call both in turns; returns the seconds of the calls after the first ones."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(UNTIMED + turns):
        for call, kept in zip((one, other), times, strict=True):
            begun = time.perf_counter()
            call()
            if turn >= UNTIMED:
                kept.append(time.perf_counter() - begun)
    return times


def describe(figures: dict[str, Any]) -> list[str]:
    """Say both throughputs and their ratio."""
    rows, (one, together) = figures["config"]["rows"], (figures["one_fps"], figures["batch_fps"])
    return [f"one stream: {one:.1f} frames/s; {rows} at once: {together:.1f} together; ratio {figures['ratio']:.2f}"]


def main(arguments: Arguments) -> None:
    """Print the throughputs; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    report(arguments.json, partial(measure, arguments), describe)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
