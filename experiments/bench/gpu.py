"""The full-size table: what a 19B stream costs on one accelerator.

Random weights made on the device, bf16, 512x768, no network and no PyAV. Expected on one GPU of 80 GB: 38 GB of
weights, 2.4 GB of codecs and about 6 GB of cache. Besides the table, every run's figures (keys as in
`omniforcing_jax.bench`) go to a JSON file. `ttfc_cold_s` is not measured here.
Source: specs/omniforcing.md 6.5 and 1.3 (published: 0.7 s to the first chunk, about 25 frames/s).

    python -m experiments.bench.gpu --json out/gpu.json
"""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from omniforcing_jax.cli.bench_stream import load_subject, measure
from omniforcing_jax.cli.options import BenchOptions, DType
from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.pipeline.presets import PRESETS
from omniforcing_jax.stream.plan import plan_stream

COLUMNS = ("steps", "window", "fps", "realtime_factor", "first_frame_s", "ttfc_s", "device_gb", *("p50", "p95"))
PART_COLUMNS = ("denoise", "clean_pass", "video_decode", "audio_decode", "copy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is run: every number of steps with every window."""

    json: Path
    """File for all figures."""
    preset: str = "ltx2-19b"
    """Sizes of the network and its codecs."""
    steps: tuple[int, ...] = (4, 3)
    """Denoise steps per block."""
    windows: tuple[int, ...] = (0, 2)
    """Blocks that a block may see, itself included; 0 fills the horizon."""
    blocks: int = 30
    """Length of each stream."""
    dtype: DType = "bfloat16"
    """Type to compute in."""


def run(config: Config) -> list[dict[str, Any]]:
    """Measure every combination on one set of weights."""
    sampler = PRESETS[config.preset].sampler
    command = BenchOptions(
        what="stream",
        blocks=config.blocks,
        json=config.json,
        preset=config.preset,
        random_weights=True,
        mux=False,
        dtype=config.dtype,
    )
    subject, rows = load_subject(command), []
    for asked in config.steps:
        steps = min(asked, sampler.steps) if sampler else asked
        for window in config.windows:
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


def main(config: Config) -> None:
    """Print the table and write the figures."""
    machine.use_compilation_cache()
    names = [*COLUMNS, *(f"{name} ms" for name in PART_COLUMNS)]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    write_json(config.json, run(config))


if __name__ == "__main__":
    main(tyro.cli(Config))
