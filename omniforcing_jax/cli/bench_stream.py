"""What a stream costs: one JSON object per run of `bench stream`.

    python -m omniforcing_jax bench stream --blocks 600 --json out/bench.json
    python -m omniforcing_jax bench stream --blocks 60 --preset ltx2-19b --random-weights --dtype bfloat16 --no-mux ...

The keys, in order. A block's time is the wall-clock time from the hand-over of the chunk before to its own, with
encoding (unless --no-mux) on its way in another thread. "After the second block" is after the hand-over of chunk 1:
from omniforcing_jax.stream.chunk_stream import no_trace
from omniforcing_jax.stream.request import StreamRequest
from there on every program has been compiled, and speeds are taken.

    device, preset         accelerator (or processor); the name of the weights
    blocks                 blocks streamed
    compiles               programs compiled from the opening of the stream on; those from the disk cache not counted
    compiles_after_block2  the same, after the second block; programs from the disk cache are counted too
    first_frame_s          warm: from the request (text included) to the first chunk
    ttfc_s                 warm: from the request until one whole second of picture and sound can be played
    ttfc_cold_s            the same in a new process with a warm disk cache, from the start of the process (imports
                           and weights included); it is run again until nothing was compiled
    fps, realtime_factor   frames per second after the second block, and that over 24
    block_ms               p50, p95 and max of the block times after the second block
    first100_p50_ms, last100_p50_ms   median of the first and of the last 100 of them (or of all, if there are fewer)
    rss_mb_block10, rss_mb_end        resident memory of the process in 10^6 bytes, after block 10 and at the end
    device_bytes_block10, device_bytes_end   device memory in use; on CPU the sum of live arrays
    underruns              chunks handed over after their time in a playback that began with the first chunk
    parts                  milliseconds of each part of a steady block (median), each waited for by itself: denoise,
                           clean_pass, video_decode, audio_decode, copy, mux; and text, once per prompt
"""

import contextlib
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import Progress

from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline import checks
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.pipeline.random_weights import random_pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream, Trace, no_trace
from omniforcing_jax.stream.mp4 import Mp4Writer, Overlapped
from omniforcing_jax.stream.plan import StreamPlan, plan_stream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.start import start_stream
from omniforcing_jax.text.contexts import TextContexts

PROMPT = "a red ball and a blue ball"
TEXT_TOKENS = 1024  # of random contexts, where the weights have no text encoder; as LTX-2's connectors give
EARLY = 10  # block after which memory is looked at first
COLD_TRIES = 3  # new processes, until nothing was left to compile
EDGE = 100  # blocks of the first and of the last median
PART_BLOCKS = 8  # steady blocks whose parts are timed
PARTS = {
    "text": "text",
    "denoise": "denoise",
    "commit": "clean_pass",
    "decode video": "video_decode",
    "decode audio": "audio_decode",
    "copy": "copy",
}
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class BenchSubject:
    """What is measured: a loaded pipeline, how it streams, and for how many blocks."""

    pipeline: Pipeline
    plan: StreamPlan
    blocks: int

    def open(self, trace: Trace = no_trace, blocks: int | None = None) -> ChunkStream:
        """Start a stream, by default an endless one; its text is projected anew."""
        plan = self.plan._replace(blocks=blocks)
        return start_stream(self.pipeline, plan, plan.request.contexts, trace)


@dataclass
class StreamTimings:
    """What a long run showed, chunk by chunk, in arrays: lists of numbers would grow by more than what is measured."""

    times: "array[float]" = field(default_factory=partial(array, "d"))  # of hand-over, seconds
    frames: "array[int]" = field(default_factory=partial(array, "i"))
    starts: "array[float]" = field(default_factory=partial(array, "d"))  # of the picture, seconds
    memory: dict[str, tuple[float, int]] = field(default_factory=dict)  # resident MB and device bytes

    def note(self, chunk: Chunk) -> None:
        """Take note of a chunk that was just handed over."""
        self.times.append(time.perf_counter())
        self.frames.append(len(chunk.video))
        self.starts.append(chunk.video_start_s)

    def look_at_memory(self, name: str) -> None:
        """Take note of the memory in use."""
        self.memory[name] = (round(machine.resident_bytes() / MEGABYTE, 1), machine.device_bytes())

    @property
    def block_ms(self) -> list[float]:
        """Times of the blocks after the second one."""
        return [1000 * (b - a) for a, b in zip(self.times[1:], self.times[2:], strict=False)]

    @property
    def frames_per_second(self) -> float:
        """Speed after the second block."""
        return sum(self.frames[2:]) / (self.times[-1] - self.times[1])

    @property
    def underruns(self) -> int:
        """Chunks that came after their time."""
        return sum(time - self.times[0] > start for time, start in zip(self.times, self.starts, strict=True))


def prepare(command: BenchOptions) -> Callable[[], None]:
    """Check what is to be measured, without touching the device.

    Raises:
        ValueError: in one line, whatever is wrong with the request.
    """
    check_writable(command.json)
    if command.blocks is None:
        raise ValueError("give --blocks: how long the stream is that is measured")
    if command.blocks < 3:
        raise ValueError(f"blocks={command.blocks}: must be at least 3, speeds are taken after the second block")
    if command.random_weights != (command.preset is not None):
        raise ValueError("--preset and --random-weights go together: a preset has no weights of its own")
    if command.preset is not None and command.weights is not None:
        raise ValueError("give one of --weights and --preset")
    if command.preset is not None and command.preset not in PRESETS:
        raise ValueError(f"preset={command.preset!r}: must be one of {', '.join(PRESETS)}")
    checks.student_sampler(_config_of(command))
    return lambda: _report(command)


def _writer(stream: ChunkStream, path: Path | None) -> contextlib.AbstractContextManager[Mp4Writer | None]:
    """Open a file for a stream's chunks, or nothing."""
    if path is None:
        return contextlib.nullcontext()
    height, width = stream.picture_size
    return Mp4Writer(path, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=stream.sample_rate)


def _drop(chunk: Chunk) -> None:
    """Consume a chunk without encoding it."""


def _report(command: BenchOptions) -> None:
    cold = measure_cold_start(command)  # first: later this process holds the device's memory
    figures = measure(load_subject(command), mux=command.mux, cold_s=cold)
    write_json(command.json, figures)
    print(json.dumps(figures, indent=2))


def _config_of(command: BenchOptions) -> PipelineConfig:
    preset = command.preset
    return checks.config_of(command.weights or CHIME_WEIGHTS / "student") if preset is None else PRESETS[preset]


def load_subject(command: BenchOptions) -> BenchSubject:
    """Load a weights folder, or make a preset's weights on the device."""
    dtype = jnp.dtype(command.dtype)
    config = _config_of(command)
    if command.preset is None:
        folder = command.weights or CHIME_WEIGHTS / "student"
        pipeline = checks.load(folder, config, dtype)
    else:
        pipeline = random_pipeline(config, command.seed, dtype)
    contexts = random_contexts(config) if config.words is None else None
    request = StreamRequest(
        prompt=PROMPT,
        seed=command.seed,
        height=command.height,
        width=command.width,
        window=command.window,
        steps=command.steps,
        dtype=dtype,
        contexts=contexts,
    )
    plan = plan_stream(pipeline, request)
    return BenchSubject(pipeline=pipeline, plan=plan, blocks=command.blocks or 0)


def random_contexts(config: PipelineConfig) -> TextContexts:
    """Draw text contexts for weights that have no text encoder."""
    model = config.model
    video, audio = (model.caption_channels or stream.width for stream in (model.video, model.audio))
    keys = jax.random.split(jax.random.key(0))
    return TextContexts(
        jax.random.normal(keys[0], (1, TEXT_TOKENS, video)), jax.random.normal(keys[1], (1, TEXT_TOKENS, audio)), None
    )


def measure(subject: BenchSubject, *, mux: bool, cold_s: float | None) -> dict[str, Any]:
    """Run the stream and a few short ones; returns all figures, with the cold start that was measured before."""
    with tempfile.TemporaryDirectory() as folder:
        run, compiles = run_blocks(subject, Path(folder) / "bench.mp4" if mux else None)
        first_frame, playable = measure_warm_start(subject)
        parts = measure_parts(subject, Path(folder) / "parts.mp4" if mux else None)
    times = run.block_ms
    centiles = statistics.quantiles(times, n=20, method="inclusive") if len(times) > 1 else times * 19
    return {
        "device": jax.devices()[0].device_kind,
        "preset": subject.pipeline.config.name,
        "blocks": subject.blocks,
        "compiles": compiles[0],
        "compiles_after_block2": compiles[1],
        "first_frame_s": round(first_frame, 3),
        "ttfc_s": round(playable, 3),
        "ttfc_cold_s": cold_s,
        "fps": round(run.frames_per_second, 2),
        "realtime_factor": round(run.frames_per_second / FRAME_RATE, 3),
        "block_ms": {
            "p50": round(statistics.median(times), 2),
            "p95": round(centiles[18], 2),
            "max": round(max(times), 2),
        },
        "first100_p50_ms": round(statistics.median(times[:EDGE]), 2),
        "last100_p50_ms": round(statistics.median(times[-EDGE:]), 2),
        "rss_mb_block10": run.memory["early"][0],
        "rss_mb_end": run.memory["end"][0],
        "device_bytes_block10": run.memory["early"][1],
        "device_bytes_end": run.memory["end"][1],
        "underruns": run.underruns,
        "parts": parts,
    }


def run_blocks(subject: BenchSubject, path: Path | None) -> tuple[StreamTimings, tuple[int, int]]:
    """Stream all blocks into a file (or nowhere); also counts compiled programs, in all and after the second block."""
    run, counter = StreamTimings(), machine.CompileCounter.start()
    stream = subject.open(blocks=subject.blocks)
    ready_at_block2, last = 0, subject.blocks - 1
    looks = {"early": min(EARLY, last), "end": last}
    console = Console(stderr=True)
    with (
        _writer(stream, path) as out,
        Overlapped(out.write if out else _drop) as consume,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        for chunk in progress.track(machine.trimmed(stream), total=subject.blocks, description="streaming"):
            consume(chunk)
            if not len(chunk.video):
                continue
            run.note(chunk)
            if chunk.index == 1:
                ready_at_block2 = counter.ready
            for name, block in looks.items():
                if chunk.index == block:
                    consume.wait()  # so that the same chunks are alive at both looks
                    run.look_at_memory(name)
    counter.stop()
    return run, (counter.compiled, counter.ready - ready_at_block2)


def measure_cold_start(command: BenchOptions) -> float:
    """Return the seconds from the start of a new process until a whole second can be played, programs on disk."""
    program = "import pickle, sys; from omniforcing_jax import bench; bench.start_cold(pickle.load(sys.stdin.buffer))"
    for _ in range(COLD_TRIES):
        child = subprocess.run(
            [sys.executable, "-c", program], input=pickle.dumps(command), stdout=subprocess.PIPE, check=True
        )
        answer = json.loads(child.stdout.splitlines()[-1])
        if not answer["compiled"]:
            return round(answer["seconds"], 3)
    raise RuntimeError(f"{answer['compiled']} programs do not stay in the disk cache")


def start_cold(command: BenchOptions) -> None:
    """Do what a new process does until a whole second can be played; prints when that was and what it compiled."""
    machine.use_compilation_cache()
    machine.use_one_heap()
    counter = machine.CompileCounter.start()
    next(chunk for chunk in load_subject(command).open() if is_second_playable(chunk))
    print(json.dumps({"seconds": machine.process_seconds(), "compiled": counter.compiled}))


def measure_warm_start(subject: BenchSubject) -> tuple[float, float]:
    """Return the seconds from a request to its first chunk, and until a whole second of both can be played."""
    began = time.perf_counter()
    stream, first = subject.open(), 0.0
    for chunk in stream:
        first = first or time.perf_counter() - began
        if is_second_playable(chunk):
            break
    return first, time.perf_counter() - began


def is_second_playable(chunk: Chunk) -> bool:
    """Whether picture and sound up to the end of this chunk are both a second long."""
    video = chunk.video_start_s + len(chunk.video) / FRAME_RATE
    return min(video, chunk.audio_start_s + len(chunk.audio) / chunk.sample_rate) >= 1


def measure_parts(subject: BenchSubject, path: Path | None) -> dict[str, float | None]:
    """Time each part of steady blocks by itself, by waiting for its outputs; medians in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in (*PARTS.values(), "mux")}
    last = time.perf_counter()

    def trace(step: str, block: int, outputs: Any) -> None:
        nonlocal last
        jax.block_until_ready([leaf for leaf in jax.tree.leaves(outputs) if isinstance(leaf, jax.Array)])
        if block > 1 or step == "text":
            times[PARTS[step]].append(time.perf_counter() - last)
        last = time.perf_counter()

    stream = subject.open(trace)
    with _writer(stream, path) as out:
        for chunk in stream:
            if out is not None and chunk.index > 1:
                out.write(chunk)
                times["mux"].append(time.perf_counter() - last)
            if chunk.index == 1 + PART_BLOCKS:
                break
            last = time.perf_counter()
    return {name: round(1000 * statistics.median(taken), 3) if taken else None for name, taken in times.items()}
