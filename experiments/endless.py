"""Hours of one stream: does anything grow, slow down, blow up or lose its position?

A tiny random network is streamed for 36,000 blocks, ten hours of picture and sound. Every block goes through all of a
stream, decoders included. What it shows means nothing; what it costs and where its keys are does. The pinned keys are
the risk. Their distance to the present would grow without limit if they were not re-anchored. An angle is 5e7 rad
after ten hours, of which float32 would keep the whole turns and little else.

Hardware: any; two CPU cores make 36,000 blocks in seven minutes.
Expect: the same device bytes at block 10 and at the end; blocks as fast as those of a new stream (`late_over_new`);
finite latents and samples; angles within 1e-6 of exact arithmetic. The first and the last hundred blocks are minutes
apart, in which a shared machine changes.

    python -m experiments.endless --blocks 36000 --json out/endless.json
"""

import dataclasses
import json
import statistics
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.cli.bench_stream import EARLY, EDGE, PROMPT, StreamTimings
from omniforcing_jax.io import machine
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.model.positions import Shift, make_positions, shift_phases, shift_rotations
from omniforcing_jax.nn.rope import Phases, frequencies, rotate
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.pipeline.random_weights import random_pipeline
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.strict_json import require

TWO_PI = 2 * Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Stream for hours."""

    blocks: int = 36_000
    """Length of the stream, at least 12: memory is compared with what it was after block 10."""
    preset: str = "tiny"
    """Preset whose sizes the random weights have."""
    height: int | None = 32
    """Frame height in pixels; None is the preset's own."""
    width: int | None = 32
    """Frame width in pixels; None is the preset's own."""
    seed: int = 0
    """Random seed of weights and noise."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


def stream_long(pipeline: Pipeline, arguments: Arguments) -> dict[str, Any]:
    """Stream so many blocks and say what they cost and where the keys stand at the end."""
    run, is_finite = StreamTimings(), True
    made: dict[str, Any] = {}
    counter = machine.CompileCounter.start()
    opened = partial(open_stream, pipeline, PROMPT, seed=arguments.seed, height=arguments.height, width=arguments.width)
    stream = opened(trace=lambda step, block, outputs: made.update({step: outputs}))
    ready, start_s = 0, 0.0
    with Bar("streaming", arguments.blocks, "blocks") as bar:
        chunks = machine.trimmed(stream)
        for k in bar.over(range(arguments.blocks)):
            chunk = next(chunks)
            run.note(chunk)
            start_s = chunk.video_start_s
            is_finite &= all(np.isfinite(x).all() for x in (*jax.device_get(made["denoise"]), chunk.audio))
            if k == 1:
                ready = counter.ready
            if k in (EARLY, arguments.blocks - 1):
                run.look_at_memory("early" if k == EARLY else "end")
    late_over_new = time_in_turns(stream, opened())
    counter.stop()
    return {
        "blocks": arguments.blocks,
        "hours": round(start_s / 3600, 3),
        "is_finite": bool(is_finite),
        "compiles_after_block2": counter.ready - ready,
        "first100_p50_ms": round(statistics.median(run.block_ms[:EDGE]), 2),
        "last100_p50_ms": round(statistics.median(run.block_ms[-EDGE:]), 2),
        "late_over_new": round(late_over_new, 3),
        "rss_mb_block10": run.memory["early"][0],
        "rss_mb_end": run.memory["end"][0],
        "device_bytes_block10": run.memory["early"][1],
        "device_bytes_end": run.memory["end"][1],
        "pinned_key_error": pinned_key_error(stream),
        "angle_error": angle_error(stream.static, stream.state.block),
    }


def time_in_turns(late: ChunkStream, new: ChunkStream) -> float:
    """Let a late and a new stream make a block each in turns; the ratio of their median times, decoding included."""
    times: dict[ChunkStream, list[float]] = {late: [], new: []}
    for _ in range(EARLY + EDGE):
        for stream, own in times.items():
            begun = time.perf_counter()
            next(stream)
            jax.block_until_ready(stream.state.cache)
            own.append(time.perf_counter() - begun)
    return statistics.median(times[late][EARLY:]) / statistics.median(times[new][EARLY:])


def pinned_key_error(stream: ChunkStream) -> float:
    """Compare pinned keys, as the next block sees them moved, with exactly turned ones; relative to the largest."""
    model, cache, k = stream.static.model, stream.state.cache, stream.state.block
    fraction = Fraction(stream.static.sampler.shift_seconds(k)) / Fraction(model.rotary.max_seconds)
    solid, line = (exact_phases(grid, [2 * fraction]) for grid in grids(stream.static))
    turns, worst = shift_rotations(model, Shift(solid=solid, line=line)), 0.0
    own = shift_rotations(model, shift_phases(model, stream.static.sampler.shift_seconds(k)))
    layers = cache.past if is_list(cache.past) else (cache.past,)
    for name, past in ((name, getattr(layer, name)) for layer in layers for name in ("video_self", "audio_self")):
        exact = np.asarray(rotate(past.pinned.k, getattr(turns, name)))
        found = np.asarray(rotate(past.pinned.k, getattr(own, name)))
        worst = max(worst, float(np.abs(found - exact).max() / np.abs(exact).max()))
    return worst


def angle_error(static: StaticConfig, k: int) -> float:
    """Compare the phases that block k is made with, its own and those its pinned keys turn by, with exact ones."""
    model, block = static.model, static.sampler.layout.block(k)
    found = make_positions(model, block, static.grid)
    frames = [Fraction(16 * t - 6, 48) for t in range(block.video_start, block.video_end)]  # midpoints, in seconds
    latents = [Fraction(8 * t - 2, 200) for t in range(block.audio_start, block.audio_end)]
    solid, line = grids(static)
    pairs = [(found.time, solid, frames), (found.video_time, line, frames), (found.audio_time, line, latents)]
    worst = 0.0
    for phases, grid, seconds in pairs:
        exact = exact_phases(grid, [2 * s / Fraction(model.rotary.max_seconds) - 1 for s in seconds])
        worst = max(worst, np.abs(phases.cos - exact.cos).max(), np.abs(phases.sin - exact.sin).max())
    return float(worst)


def exact_phases(grid: Float[np.ndarray, " W"], fractions: list[Fraction]) -> Phases:
    """Phases of grid * fraction, whole turns taken off in rational arithmetic."""
    angles = [[Fraction(float(g)) * fraction % TWO_PI for g in grid] for fraction in fractions]
    exact = np.array(angles, np.float64)
    return Phases(cos=np.cos(exact), sin=np.sin(exact))


def grids(static: StaticConfig) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of the three-axis and of the one-axis tables."""
    model = static.model
    return frequencies(model.rotary, 3, model.video.width), frequencies(model.rotary, 1, model.audio.width)


def main(arguments: Arguments) -> None:
    """Stream, then print the figures; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    machine.use_one_heap()
    with refusing(arguments.json):
        require(arguments.preset in PRESETS, "preset", arguments.preset, f"must be one of {', '.join(PRESETS)}")
        require(arguments.blocks >= EARLY + 2, "blocks", arguments.blocks, f"must be at least {EARLY + 2}")
        figures = stream_long(random_pipeline(PRESETS[arguments.preset], arguments.seed), arguments)
        print(json.dumps(figures, indent=2))
        keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
