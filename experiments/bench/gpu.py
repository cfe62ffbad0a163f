"""The full-size table: what a 19B stream costs on one accelerator.

Weights are random and made on the device, in bfloat16, for 512x768 pixels. Neither network nor PyAV is needed. A GPU
of 80 GB should hold it: 38 GB of weights, 2.4 GB of codecs and about 6 GB of cache. The table is printed, and the
figures of every run (keys as in `bench stream`) go to a JSON file. `ttfc_cold_s` is not measured here.

Source: OmniForcing's read-me publishes 0.7 s to the first chunk and about 25 frames/s, to compare with.

    python -m experiments.bench.gpu --json out/gpu.json
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.cli.bench_stream import load_subject, measure
from omniforcing_jax.cli.options import BenchOptions, DType
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.stream.plan import plan_stream

COLUMNS = ("steps", "window", "fps", "realtime_factor", "first_frame_s", "ttfc_s", "device_gb", *("p50", "p95"))
PART_COLUMNS = ("denoise", "clean_pass", "video_decode", "audio_decode", "copy")


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


def run(arguments: Arguments) -> list[dict[str, Any]]:
    """Measure every combination on one set of weights."""
    sampler = PRESETS[arguments.preset].sampler
    command = BenchOptions(
        what="stream",
        blocks=arguments.blocks,
        json=arguments.json,
        preset=arguments.preset,
        random_weights=True,
        mux=False,
        dtype=arguments.dtype,
    )
    subject, rows = load_subject(command), []
    for asked in arguments.steps:
        steps = min(asked, sampler.steps) if sampler else asked
        for window in arguments.windows:
            request = dataclasses.replace(subject.plan.request, window=window, steps=steps)
            plan = plan_stream(subject.pipeline, request)
            figures = measure(dataclasses.replace(subject, plan=plan), mux=False, cold_s=None)
            rows.append({"steps": steps, "window": window, **figures})
            print(format_row(rows[-1]), flush=True)
    return rows


def format_row(figures: dict[str, Any]) -> str:
    """Write one run as a row of a Markdown table."""
    shown = {**figures, **figures["block_ms"], "device_gb": round(figures["device_bytes_end"] / 1e9, 2)}
    cells = [shown[name] for name in COLUMNS] + [figures["parts"][name] for name in PART_COLUMNS]
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Arguments) -> None:
    """Print the table and write the figures; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    names = [*COLUMNS, *(f"{name} ms" for name in PART_COLUMNS)]
    with refusing(arguments.json):
        print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        keep_figures(arguments.json, run(arguments))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
