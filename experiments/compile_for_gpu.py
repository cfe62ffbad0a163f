"""Compile a full-size program for a GPU on a machine that has none: its memory, and the least time it must take.

XLA compiles for a card from its description (floors/targets.py), and no weight is made. Each kernel of the compiled
program has a floor: the larger of its work at the card's peak and of its traffic at the card's bandwidth
(floors/kernels.py). The table adds them up by category. `weights_copied` and `cache_copied` are kernels that copy,
cut, join or convert weights, or the cache, and compute nothing.

CUDA's compilers are in an environment of their own, which `make cuda` makes; this command runs them there. Nothing is
tuned, because there is no card. A card may choose other matrix products, and it does not reach its peaks.

Hardware: one CPU core, half a minute, and 1 GB of memory for 48 layers.

    python -m experiments.compile_for_gpu --target h100 --program block --preset ltx2-19b --json out/block.json
"""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Literal

from experiments.cli_errors import keep_figures, refusing
from experiments.floors.compiling import SETTINGS, Request
from experiments.floors.targets import TARGETS
from experiments.gpu.subject import student_preset
from experiments.script import read_flags

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-cuda" / "bin" / "python"
COLUMNS = {"runs": ",.0f", "tflop": ".2f", "read_gb": ".2f", "written_gb": ".2f", "floor_ms": ".2f"}
OF_KERNEL = {"floor_ms": ".3f", "runs": ",.0f", "category": "", "read_mb": ".1f", "written_mb": ".1f", "path": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compile a program for a GPU."""

    target: Literal["h100", "h200", "a100", "a6000", "b200"]
    """Card."""
    program: Literal["denoise", "commit", "block", "video_decode", "audio_decode", "stage2", "stage3", "critic"]
    """What to compile: a late block of a stream or a part of it, or a step of a training."""
    preset: str = "ltx2-19b"
    """Preset whose sizes network and pictures have."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""
    layers: int | None = None
    """Layers, for a quick try; by default all that the preset has."""
    text: int = 1024
    """Tokens of a prompt, which has a mask."""
    kernel: Literal["cudnn", "plain"] = "cudnn"
    """What computes attention."""
    top: int = 0
    """Kernels to list one by one, the dearest first, each with its named scopes."""
    weights_dtype: Literal["int8", "float8"] | None = None
    """Eight bits for the matrices that are in eight bits by default (default: none, all in bfloat16)."""
    cache_dtype: Literal["int8", "float8"] | None = None
    """Eight bits for cached keys and values of video (default: none, all in bfloat16)."""
    xla_flags: str = ""
    """More flags of XLA, such as --xla_gpu_force_conv_nhwc=true."""


def run(arguments: Arguments) -> dict[str, Any]:
    """Compile in the environment with CUDA and return the figures.

    Raises:
        ValueError: If the preset is not known or no student, or the environment is not there, or a call's work is not
            known.
        RuntimeError: If the compiler fails.
    """
    student_preset(arguments.preset)
    if not PYTHON.exists():
        raise ValueError(
            f"{PYTHON.parents[1].name}, the environment with CUDA's compilers, is missing: run `make cuda`"
        )
    names = [field.name for field in dataclasses.fields(Request)]
    request = json.dumps({name: getattr(arguments, name) for name in names})
    command = [str(PYTHON), "-m", "experiments.floors.compiling", request]
    settings = SETTINGS | {"XLA_FLAGS": f"{SETTINGS['XLA_FLAGS']} {arguments.xla_flags}"}
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise (ValueError if ended.returncode == 2 else RuntimeError)(_last_error(ended.stderr))
    return json.loads(ended.stdout.splitlines()[-1])


def _last_error(said: str) -> str:
    """Return what a process said at last of an error: its own line, or the end of a traceback."""
    found = re.findall(r"^(?:error|[\w.]*(?:Error|Exception)): (.*)$", said, re.MULTILINE)
    return found[-1] if found else (said.strip() or "the compiler ended without a word").splitlines()[-1]


def format_figures(arguments: Arguments, figures: dict[str, Any]) -> str:
    """Say what was found: memory in a line, work in another, and the categories as a table in Markdown."""
    target, gb = (
        TARGETS[arguments.target],
        {name: figures[f"{name}_bytes"] / 1e9 for name in ("argument", "temp", "peak")},
    )
    share = figures["peak_bytes"] / target.memory_bytes
    lines = [
        f"{arguments.program} of {arguments.preset} on {target.name}: arguments {gb['argument']:.2f} GB, temporaries "
        f"{gb['temp']:.2f}, at its peak {gb['peak']:.2f} of {target.memory_bytes / 1e9:.1f} ({share:.0%})",
        f"{figures['kernels']:,.0f} kernels, {figures['tflop']:.1f} TFLOP, floor {figures['floor_ms']:.1f} ms",
        *_table(
            [{"category": name, **row} for name, row in figures["categories"].items()], {"category": "", **COLUMNS}
        ),
    ]
    if figures["dearest"]:
        lines += ["", *_table(figures["dearest"], OF_KERNEL)]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    """Write rows as lines of Markdown, each column in its format."""
    cells = [[format(row[name], form) for name, form in columns.items()] for row in rows]
    return [f"| {' | '.join(line)} |" for line in [list(columns), ["---"] * len(columns), *cells]]


def main(arguments: Arguments) -> None:
    """Print the figures and write them; bad input is one line on stderr and exit code 2."""
    with refusing(arguments.json):
        figures = run(arguments)
        print(format_figures(arguments, figures), flush=True)
        keep_figures(arguments.json, {name: value for name, value in figures.items() if name != "dearest"})


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
