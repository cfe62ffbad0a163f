"""The cost of a stream: `bench stream` writes one JSON object per run.

    omniforcing bench stream --blocks 600 --json out/bench.json
    omniforcing bench stream --blocks 60 --preset ltx2-19b --random-weights --dtype bfloat16 --no-mux --json out/a.json

The keys, in order. The time of a block is the wall-clock time from the hand-over of the previous chunk to that of its
own. Encoding (unless --no-mux) happens in another thread meanwhile. "After the second block" means after the hand-over
of chunk 1: from then on every program is compiled, and speeds are measured.

    device, preset         accelerator or processor; name of the weights
    blocks                 blocks streamed
    compiles               programs compiled since the stream was opened, without those from the disk cache
    compiles_after_block2  programs compiled after the second block, with those from the disk cache
    first_frame_s          warm: seconds from the request (text included) to the first chunk
    ttfc_s                 warm: seconds from the request until one whole second of picture and sound can be played
    ttfc_cold_s            the same in a new process with a warm disk cache, from the start of the process (imports
                           and weights included); the process is repeated until it compiles nothing
    fps, realtime_factor   frames per second after the second block; the same divided by 24
    block_ms               p50, p95 and max of the block times after the second block, in milliseconds
    first100_p50_ms, last100_p50_ms   median of the first and of the last 100 block times (of all, if there are fewer)
    rss_mb_block10, rss_mb_end        resident memory of the process in 10^6 bytes, after block 10 and at the end
    device_bytes_block10, device_bytes_end   device memory in use; on CPU the sum of live arrays
    underruns              chunks handed over too late for a playback that began with the first chunk
    parts                  median milliseconds of each part of a steady block, each waited for by itself: denoise,
                           clean_pass, video_decode, audio_decode, copy, mux; and text, once per prompt
"""

import contextlib
import dataclasses
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
import numpy as np

from omniforcing_jax.cli.options import BenchOptions
from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import check_writable, write_json
from omniforcing_jax.io.inputs import refuse_inputs
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline import checks
from omniforcing_jax.pipeline.loading import announce
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, with_weights_dtype
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.pipeline.random_weights import random_pipeline
from omniforcing_jax.pipeline.shipped import STUDENT, find_weights
from omniforcing_jax.stream.ahead import ProgramsAhead, compile_ahead
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream, Trace, no_trace
from omniforcing_jax.stream.conditioning.condition import NO_CONDITION, Condition
from omniforcing_jax.stream.mp4 import Mp4Writer, Overlapped
from omniforcing_jax.stream.plan import StreamPlan, check_stream_memory, plan_stream, resolve_request
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.start import start_stream
from omniforcing_jax.text.contexts import TextContexts

PROMPT = "a red ball and a blue ball"
TEXT_TOKENS = 1024  # tokens of random contexts, for weights without a text encoder; LTX-2's connectors return as many
EARLY = 10  # block after which memory is measured first
COLD_TRIES = 3  # new processes, until one compiles nothing
EDGE = 100  # blocks in the first and in the last median
PART_BLOCKS = 8  # steady blocks whose parts are timed
COLD = "from omniforcing_jax.cli.bench_stream import run_cold; run_cold()"
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
    """What is measured: a loaded pipeline, how it streams, for how many blocks, and what compiles its programs."""

    pipeline: Pipeline
    plan: StreamPlan
    blocks: int
    ahead: ProgramsAhead | None = None

    def open(self, trace: Trace = no_trace, blocks: int | None = None) -> ChunkStream:
        """Start a stream, by default an endless one. Its text is projected anew."""
        plan = self.plan._replace(blocks=blocks)
        return start_stream(self.pipeline, plan, plan.request.contexts, trace, self.ahead)


@dataclass
class StreamTimings:
    """Measurements of a long run, chunk by chunk. Arrays hold them, because lists would grow by more than is measured.

    Attributes:
        times: When each chunk was handed over, in seconds.
        frames: Frames of each chunk.
        starts: Time of each chunk's first frame in the stream, in seconds.
        memory: Resident memory in 10^6 bytes and device memory in bytes, by name of the moment.
    """

    times: "array[float]" = field(default_factory=partial(array, "d"))
    frames: "array[int]" = field(default_factory=partial(array, "i"))
    starts: "array[float]" = field(default_factory=partial(array, "d"))
    memory: dict[str, tuple[float, int]] = field(default_factory=dict)

    def note(self, chunk: Chunk) -> None:
        """Note the time of a chunk that was just handed over."""
        self.times.append(time.perf_counter())
        self.frames.append(len(chunk.video))
        self.starts.append(chunk.video_start_s)

    def look_at_memory(self, name: str) -> None:
        """Note the memory in use."""
        self.memory[name] = (round(machine.resident_bytes() / MEGABYTE, 1), machine.device_bytes())

    @property
    def block_ms(self) -> list[float]:
        """Times of the blocks after the second one, in milliseconds."""
        return [1000 * (b - a) for a, b in zip(self.times[1:], self.times[2:], strict=False)]

    @property
    def frames_per_second(self) -> float:
        """Frames per second after the second block."""
        return sum(self.frames[2:]) / (self.times[-1] - self.times[1])

    @property
    def underruns(self) -> int:
        """Number of chunks that came too late to be played in time."""
        return sum(time - self.times[0] > start for time, start in zip(self.times, self.starts, strict=True))


def prepare_bench(command: BenchOptions, startup: Startup) -> Callable[[], None]:
    """Check the request, without touching the device.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    check_writable(command.json)
    refuse_inputs("json", command.json, {"weights": find_weights(command.weights)})
    if command.blocks is None:
        raise ValueError("give --blocks: the length of the stream that is measured")
    if command.blocks < 3:
        raise ValueError(
            f"blocks={command.blocks}: must be at least 3, because speeds are those after the second block"
        )
    if command.random_weights != (command.preset is not None):
        raise ValueError("--preset and --random-weights belong together: a preset has no weights of its own")
    if command.preset is not None and command.weights is not None:
        raise ValueError("give either --weights or --preset")
    if command.preset is not None and command.preset not in PRESETS:
        raise ValueError(f"preset={command.preset!r}: must be one of {', '.join(PRESETS)}")
    checks.check_seed(command.seed)
    config = _config_of(command)
    checks.student_sampler(config)
    checks.check_side(config, command.height, command.width)
    if machine.is_shared_by_processes():
        machine.check_backend()
        _plan(command)
    return lambda: _report(command, startup)


def _writer(stream: ChunkStream, path: Path | None) -> contextlib.AbstractContextManager[Mp4Writer | None]:
    """Open a file for a stream's chunks, if there is a path."""
    if path is None:
        return contextlib.nullcontext()
    height, width = stream.picture_size
    return Mp4Writer(path, height=height, width=width, frame_rate=FRAME_RATE, sample_rate=stream.sample_rate)


def _drop(chunk: Chunk) -> None:
    """Consume a chunk without encoding it."""


def _report(command: BenchOptions, startup: Startup) -> None:
    cold = measure_cold_start(command)  # first, because later this process holds the device's memory
    config = with_weights_dtype(_config_of(command), command.weights_dtype)
    announce(startup, config, command.dtype, command.height, command.width, command.window, command.steps)
    subject = load_subject(command)
    startup.compiling()
    figures = measure(subject, mux=command.mux, cold_s=cold, on_compiled=startup.ready)
    write_json(command.json, figures)
    print(json.dumps(figures, indent=2))


def _config_of(command: BenchOptions) -> PipelineConfig:
    return checks.pipeline_config(command.weights or STUDENT) if command.preset is None else PRESETS[command.preset]


def load_subject(command: BenchOptions) -> BenchSubject:
    """Load a weights folder, or draw a preset's weights on the device."""
    plan = _plan(command)
    config, dtype = plan.config, plan.static.dtype
    contexts = random_contexts(config) if config.words is None else None
    ahead = compile_ahead(plan, contexts)
    if command.preset is None:
        pipeline = checks.load(command.weights or STUDENT, config, dtype)
    else:
        pipeline = random_pipeline(config, command.seed, dtype)
    start = _first_picture(plan) if plan.static.sampler.needs_picture else NO_CONDITION
    plan = plan_stream(pipeline, dataclasses.replace(plan.request, contexts=contexts, start=start))
    return BenchSubject(pipeline=pipeline, plan=plan, blocks=command.blocks or 0, ahead=ahead)


def _plan(command: BenchOptions) -> StreamPlan:
    """Plan the stream from configs alone.

    Raises:
        ValueError: If it does not fit into memory, before any of it is taken.
    """
    request = StreamRequest(
        prompt=PROMPT,
        seed=command.seed,
        height=command.height,
        width=command.width,
        window=command.window,
        steps=command.steps,
        dtype=jnp.dtype(command.dtype),
        weights_dtype=command.weights_dtype,
        cache_dtype=command.cache_dtype,
    )
    plan = resolve_request(_config_of(command), request)
    check_stream_memory(plan, plan.static.dtype, loaded=False)
    return plan


def _first_picture(plan: StreamPlan) -> Condition:
    """Return a grey picture of the stream's size, for weights that must begin with one."""
    height, width = (side * plan.config.video_vae.spatial_compression for side in plan.static.grid)
    return Condition(picture=np.full((1, height, width, 3), 127, np.uint8))


def random_contexts(config: PipelineConfig) -> TextContexts:
    """Draw text contexts for weights that have no text encoder."""
    model = config.model
    video, audio = (model.caption_channels or stream.width for stream in (model.video, model.audio))
    keys = jax.random.split(jax.random.key(0))
    return TextContexts(
        jax.random.normal(keys[0], (1, TEXT_TOKENS, video)), jax.random.normal(keys[1], (1, TEXT_TOKENS, audio)), None
    )


def measure(
    subject: BenchSubject, *, mux: bool, cold_s: float | None, on_compiled: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Run the stream and a few short ones.

    Args:
        subject: What is measured.
        mux: Whether picture and sound are encoded into a temporary file.
        cold_s: Seconds of the cold start, measured before; None if it was not.
        on_compiled: Called after the second block.

    Returns:
        All figures by name; see the head of this module.
    """
    with tempfile.TemporaryDirectory() as folder:
        run, compiles = run_blocks(subject, Path(folder) / "bench.mp4" if mux else None, on_compiled)
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


def run_blocks(
    subject: BenchSubject, path: Path | None, on_compiled: Callable[[], None] = lambda: None
) -> tuple[StreamTimings, tuple[int, int]]:
    """Stream all blocks into a file, or nowhere.

    Returns:
        The timings, and how many programs were compiled: in all, and after the second block.
    """
    run, counter = StreamTimings(), machine.CompileCounter.start()
    stream = subject.open(blocks=subject.blocks)
    ready_at_block2, last = 0, subject.blocks - 1
    looks = {"early": min(EARLY, last), "end": last}
    with (
        _writer(stream, path) as out,
        Overlapped(out.write if out else _drop) as consume,
        contextlib.ExitStack() as stack,
    ):
        show = None
        for chunk in machine.trimmed(stream):
            consume(chunk)
            if not len(chunk.video):
                continue
            run.note(chunk)
            if chunk.index == 1:
                ready_at_block2 = counter.ready
                on_compiled()
                show = stack.enter_context(Bar("streaming", subject.blocks, "blocks"))
            if show is not None:
                show(chunk.index + 1)
            for name, block in looks.items():
                if chunk.index == block:
                    consume.wait()  # so that the same chunks are alive at both measurements
                    run.look_at_memory(name)
    counter.stop()
    return run, (counter.compiled, counter.ready - ready_at_block2)


def measure_cold_start(command: BenchOptions) -> float:
    """Return the seconds from the start of a new process until a whole second can be played, with programs on disk."""
    compiled = 0
    for _ in range(COLD_TRIES):
        child = subprocess.run([sys.executable, "-c", COLD], input=pickle.dumps(command), capture_output=True)
        if child.returncode:
            said = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"a new process could not start the stream: {said}")
        answer = json.loads(child.stdout.splitlines()[-1])
        if not (compiled := answer["compiled"]):
            return round(answer["seconds"], 3)
    raise RuntimeError(f"{compiled} programs do not stay in the disk cache")


def run_cold() -> None:
    """Run `start_cold` in a new process, with the command that its stdin holds."""
    start_cold(pickle.load(sys.stdin.buffer))


def start_cold(command: BenchOptions) -> None:
    """Stream until a whole second can be played. Prints when that was, and how many programs were compiled."""
    machine.use_compilation_cache()
    machine.use_one_heap()
    counter = machine.CompileCounter.start()
    next(chunk for chunk in load_subject(command).open() if is_second_playable(chunk))
    print(json.dumps({"seconds": machine.process_seconds(), "compiled": counter.compiled}))


def measure_warm_start(subject: BenchSubject) -> tuple[float, float]:
    """Return the seconds from a request to its first chunk, and until a whole second can be played."""
    began = time.perf_counter()
    stream, first = subject.open(), 0.0
    for chunk in stream:
        first = first or time.perf_counter() - began
        if is_second_playable(chunk):
            break
    return first, time.perf_counter() - began


def is_second_playable(chunk: Chunk) -> bool:
    """Return whether picture and sound are both a second long at the end of this chunk."""
    video = chunk.video_start_s + len(chunk.video) / FRAME_RATE
    return min(video, chunk.audio_start_s + len(chunk.audio) / chunk.sample_rate) >= 1


def measure_parts(subject: BenchSubject, path: Path | None) -> dict[str, float | None]:
    """Time each part of steady blocks by waiting for its outputs; returns medians in milliseconds."""
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
