"""The full-size table: what a 19B stream costs on one accelerator.

Weights are random and made on the device, in bfloat16, for 512x768 pixels. Neither network nor PyAV is needed. A GPU
of 80 GB should hold it: 38 GB of weights, 2.4 GB of codecs and about 6 GB of cache. The table is printed, and the
figures of every run (keys as in `bench stream`) go to a JSON file, which is written again after each. `ttfc_cold_s` is
not measured here. `compiled` has the seconds of every program, `start` those until the first chunk, counted for each
type of weights from when they began to be drawn. With `--profile` steady blocks of the first run are profiled: the
named scopes that take most time, and how long the device was busy. `--weights wide float8` measures eight bits, too.

Source: OmniForcing's read-me publishes 0.7 s to the first chunk and about 25 frames/s, to compare with.

    python -m experiments.bench.gpu --json out/gpu.json
"""

import dataclasses
import gc
import itertools
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.cli_errors import refusing
from experiments.gpu import compiled, trace
from experiments.gpu.sheet import Figures, Sheet, attempt, markdown, markdown_row
from experiments.gpu.subject import student_preset
from experiments.script import read_flags, start_logging
from omniforcing_jax.cli.bench_stream import BenchSubject, load_subject, measure
from omniforcing_jax.cli.options import BenchOptions, DType
from omniforcing_jax.io import machine
from omniforcing_jax.stream.ahead import compile_ahead
from omniforcing_jax.stream.plan import plan_stream

COLUMNS = (
    "dtype",
    "weights",
    "steps",
    "window",
    "fps",
    "realtime_factor",
    "first_frame_s",
    "ttfc_s",
    "device_gb",
    "p50",
    "p95",
)
PART_COLUMNS = ("denoise", "clean_pass", "video_decode", "audio_decode", "copy")
HEAD = (*COLUMNS, *(f"{name} ms" for name in PART_COLUMNS))
PROFILED = 3  # blocks, after as many as fill the ring
START_COLUMNS = ("weights", "weights_s", "first_chunk_s")
PROFILE_COLUMNS = ("program", "scope", "ms", "share", "kernels", "most")


Weights = Literal["wide", "float8", "int8"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Stream with every number of steps and every window."""

    json: Path
    """JSON file for all figures."""
    preset: str = "ltx2-19b"
    """Preset whose sizes network and codecs have."""
    steps: tuple[int, ...] = (4, 3)
    """Denoise steps per block, one or several counts."""
    windows: tuple[int, ...] = (0, 2)
    """Blocks that a block may see, itself included, one or several counts; 0 fills the horizon."""
    blocks: int = 30
    """Length of each stream, in blocks."""
    dtype: DType = "bfloat16"
    """Type to compute in."""
    weights: tuple[Weights, ...] = ("wide",)
    """Types of the large matrices, one or several; "wide" is --dtype."""
    profile: bool = False
    """Profile steady blocks of the first run with each type of weights."""
    xla_flags: str = ""
    """More flags of XLA, such as --xla_gpu_command_buffer_scheduling_mode=CONCURRENT."""
    minutes: float | None = None
    """Begin no run that would end after so many minutes (default: no bound)."""


def run(arguments: Arguments) -> Figures:
    """Measure every combination, on one set of weights of each type; returns what the JSON file holds."""
    sheet = Sheet(arguments.json, arguments.minutes, preset=arguments.preset, xla_flags=arguments.xla_flags)
    with compiled.CompiledPrograms(lambda program: sheet.add("compiled", program)):
        for kind in arguments.weights:
            failed = attempt(partial(_measure_weights, arguments, sheet, kind))
            if failed is not None:
                sheet.add("rows", {"weights": kind, **failed})
            # The card does not hold two sets, and a traceback keeps what it saw.
            jax.clear_caches()
            gc.collect()
    return sheet.finish()


def _measure_weights(arguments: Arguments, sheet: Sheet, kind: Weights) -> None:
    """Measure every combination on weights of one type."""
    begun = machine.process_seconds()
    subject = _load(arguments, kind)
    sheet.put(device=jax.devices()[0].device_kind)
    start = {"weights": kind, "weights_s": round(machine.process_seconds() - begun, 2)}
    planned = _plans(arguments, subject, kind)
    next(subject.open())
    sheet.add("start", {**start, "first_chunk_s": round(machine.process_seconds() - begun, 2)})
    for number, (row, each) in enumerate(planned):
        sheet.measure("rows", row, partial(_measured, each))
        print(format_row(sheet.figures["rows"][-1]), flush=True)
        if arguments.profile and number == 0:
            sheet.measure("profile", row, partial(profile, each))


def _plans(arguments: Arguments, subject: BenchSubject, kind: str) -> list[tuple[Figures, BenchSubject]]:
    """List what is measured: the first figures of its row, and the stream."""
    plan, rows = subject.plan, []
    steps = sorted({min(asked, plan.static.sampler.steps) for asked in arguments.steps}, reverse=True)
    for window, count in itertools.product(arguments.windows, steps):
        request = dataclasses.replace(plan.request, window=window, steps=count)
        row = {"dtype": arguments.dtype, "weights": kind, "steps": count, "window": window}
        of_row = plan_stream(subject.pipeline, request)
        ahead = subject.ahead if of_row.static == plan.static else compile_ahead(of_row, request.contexts)
        rows.append((row, dataclasses.replace(subject, plan=of_row, ahead=ahead)))
    return rows


def _load(arguments: Arguments, kind: Weights) -> BenchSubject:
    """Draw the weights, and wait until they are there."""
    command = BenchOptions(
        what="stream",
        blocks=arguments.blocks,
        json=arguments.json,
        preset=arguments.preset,
        random_weights=True,
        mux=False,
        dtype=arguments.dtype,
        weights_dtype=None if kind == "wide" else kind,
    )
    subject = load_subject(command)
    jax.block_until_ready(subject.pipeline.transformer)
    return subject


def _measured(subject: BenchSubject) -> Figures:
    return measure(subject, mux=False, cold_s=None)


def profile(subject: BenchSubject) -> Figures:
    """Profile steady blocks; returns the figures of `trace.summarise`."""
    stream = subject.open()
    for _ in range(stream.static.sampler.past_blocks + 2):
        next(stream)
    options: Any = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # thousands of events that nobody reads
    with tempfile.TemporaryDirectory() as folder:
        jax.block_until_ready(stream.state.cache)
        with jax.profiler.trace(folder, profiler_options=options):
            begun = time.perf_counter()
            for _ in range(PROFILED):
                next(stream)
            jax.block_until_ready(stream.state.cache)
            wall_s = time.perf_counter() - begun
        return {"blocks": PROFILED, **trace.summarise(trace.read_trace(Path(folder)), trace.live_paths(), wall_s)}


def format_row(figures: Figures) -> str:
    """Write one run as a row of a Markdown table."""
    if "parts" not in figures:
        return markdown_row(HEAD, figures)
    parts = {f"{name} ms": figures["parts"][name] for name in PART_COLUMNS}
    gigabytes = round(figures["device_bytes_end"] / 1e9, 2)
    return markdown_row(HEAD, {**figures, **figures["block_ms"], **parts, "device_gb": gigabytes})


def table(figures: Figures) -> str:
    """Write runs, profile and compiled programs as Markdown tables."""
    tables = ["\n".join([markdown(HEAD, ()), *map(format_row, figures.get("rows", []))])]
    for found in figures.get("profile", []):
        shown = {name: value for name, value in found.items() if name != "top"}
        tables += [f"Profile: {shown}", markdown(PROFILE_COLUMNS, found.get("top", []))]
    tables.append(markdown(START_COLUMNS, figures.get("start", [])))
    return "\n\n".join([*tables, compiled.table(figures)])


def main(arguments: Arguments) -> None:
    """Print the table and write the figures; bad input is one line on stderr and exit code 2."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {arguments.xla_flags}"  # read with the first program
    start_logging()
    machine.use_compilation_cache()
    with refusing(arguments.json):
        student_preset(arguments.preset)
        print(markdown(HEAD, ()), flush=True)
        run(arguments)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
