r"""A quarter of an hour on a GPU machine: what it is worth to know, in order of worth.

The machine needs no network, PyAV or librosa. It has Python 3.12, and jax with CUDA, flax, optax, orbax-checkpoint,
jaxtyping, scipy, tokenizers, ml_dtypes, safetensors, rich and matplotlib. What it lacks is carried as wheels of 5 MB,
beside the repository's 28 MB.

kernels: attention against its plain form, at every shape of a stream (gpu/kernels.py).

stream: 19B random weights, wide and in float8, and a profile of each (bench/gpu.py).

overlap: the wide stream again, with kernels that do not wait for each other side by side.

train: chime's teacher and student at large batch; their weights come back (gpu/train.py).

start: cold and warm starts, programs, decoders (gpu/start.py).

Each part is a process with a time box, which is its share of the minutes that are left. A part that hangs is killed,
one that fails is noted, and the next one begins. JSON files are whole after every row. The folder holds at the end
one JSON file of each part, on_gpu.json (how each part ended), on_gpu.log, teacher.tar and student.tar: nine files, the
largest 9 MB.

Prepare, at the root of the repository:

    python3 -m pip download --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 --only-binary=:all: --no-deps -d .whl \
        tyro docstring-parser typeguard grain array-record portpicker

Carry the repository with the folder .whl. Run there, where OUT is the folder that comes back, in one call or, where a
call may take ten minutes only, in two. A program of 19B takes a card a minute and a half to compile:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
    python3 -m experiments.bench.on_gpu --minutes 8.5 --parts kernels stream overlap start --scratch /tmp/gpu --out $OUT
    python3 -m experiments.bench.on_gpu --minutes 4 --parts train --scratch /tmp/gpu --out $OUT

The tests of the kernels that only a GPU runs take half a minute:

    JAX_PLATFORMS=cuda python3 -m pytest -o addopts= -q tests/nn/test_kernels.py -k cudnn_equals

To try it on a CPU, in a few minutes:

    python -m experiments.bench.on_gpu --tiny --minutes 8 --out out/on_gpu
"""

import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from experiments.cli_errors import refusing
from experiments.gpu.boxes import Outcome, Part, run_parts
from experiments.gpu.sheet import Figures, Sheet, markdown
from experiments.script import read_flags
from omniforcing_jax.io import machine

Name = Literal["kernels", "stream", "overlap", "train", "start"]
END_S, END_SHARE = 8.0, 0.03  # of the time, kept for the summary
OUTCOME_COLUMNS = ("part", "how", "seconds", "box_s", "error")

STREAM = ("--steps", "4", "--windows", "0", "--blocks", "16")
PARTS = (
    Part(name="kernels", share=1, module="experiments.gpu.kernels"),
    Part(
        name="stream",
        share=5,
        module="experiments.bench.gpu",
        arguments=("--weights", "wide", "float8", *STREAM, "--profile"),
    ),
    Part(
        name="overlap",
        share=2.5,
        module="experiments.bench.gpu",
        arguments=(*STREAM, "--xla-flags=--xla_gpu_command_buffer_scheduling_mode=CONCURRENT"),
    ),
    Part(name="train", share=6, module="experiments.gpu.train"),
    Part(name="start", share=2.5, module="experiments.gpu.start"),
)
TINY = {
    "kernels": ("--preset", "tiny", "--chain-ms", "1"),
    "stream": (
        *("--preset", "tiny", "--weights", "wide", "float8", "--steps", "2", "--windows", "0", "--blocks", "4"),
        *("--profile",),
    ),
    "overlap": ("--preset", "tiny", "--steps", "2", "--windows", "0", "--blocks", "4"),
    "train": (
        "--tiny",
        "--teacher-batch",
        "2",
        "--student-batch",
        "2",
        "--clips",
        "8",
        "--workers",
        "2",
        "--most-steps",
        "3",
    ),
    "start": ("--preset", "tiny"),
}
IN_A_HURRY = "--xla_backend_optimization_level=0"  # of the tiny run: compiling is nearly all that it does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure and train on a GPU machine, against the clock."""

    out: Path
    """Folder for all that comes back."""
    minutes: float = 15.0
    """Time for everything."""
    parts: tuple[Name, ...] = ("kernels", "stream", "overlap", "train", "start")
    """Parts to run; their order is fixed."""
    scratch: Path | None = None
    """Folder for compiled programs, clips and checkpoints, which a later call goes on with (default: a temporary
    one)."""
    tiny: bool = False
    """Run the same code at a tiny size, for a machine without a GPU."""


def run(arguments: Arguments, parts: Sequence[Part], scratch: Path) -> Figures:
    """Run parts one after the other; returns what `on_gpu.json` holds."""
    seconds = 60 * arguments.minutes
    sheet = Sheet(arguments.out / "on_gpu.json", machine=describe_machine(), minutes=arguments.minutes)

    def on_end(outcome: Outcome) -> None:
        sheet.add("parts", dataclasses.asdict(outcome))
        print(f"{outcome.part}: {outcome.how} after {outcome.seconds:.0f} of {outcome.box_s:.0f} s", flush=True)

    for part in parts:
        (arguments.out / f"{part.name}.json").unlink(missing_ok=True)  # of an earlier run
    left = seconds - machine.process_seconds() - min(END_S, END_SHARE * seconds)
    run_parts(parts, arguments.out, left, environment(scratch, arguments.tiny), on_end)
    return sheet.finish()


def chosen_parts(arguments: Arguments, scratch: Path) -> list[Part]:
    """Return the parts that were asked for, with their flags."""
    parts = [part for part in PARTS if part.name in arguments.parts]
    if arguments.tiny:
        parts = [dataclasses.replace(part, arguments=TINY[part.name]) for part in parts]
    folder = ("--folder", str(scratch / "train"))
    return [dataclasses.replace(p, arguments=(*p.arguments, *folder)) if p.name == "train" else p for p in parts]


def environment(scratch: Path, tiny: bool) -> dict[str, str]:
    """Return the variables of the parts: one cache of programs for all, and nearly all of the device's memory."""
    (scratch / "cache").mkdir(parents=True, exist_ok=True)
    own = {
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "PYTHONUNBUFFERED": "1",
    }
    if tiny:
        own["XLA_FLAGS"] = f"{IN_A_HURRY} {os.environ.get('XLA_FLAGS', '')}"
    return {**os.environ, **own}


def describe_machine() -> Figures:
    """Say what machine and software this is."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        cards = []
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    cards = [card.strip() for card in cards if card.strip()]
    return {"cards": cards, "cpus": os.cpu_count(), "python": platform.python_version(), **packages}


def summary(figures: Figures, folder: Path, parts: Sequence[Part]) -> str:
    """Write everything as Markdown tables."""
    texts = [f"## on_gpu: {figures['machine']}", markdown(OUTCOME_COLUMNS, figures.get("parts", []))]
    for part in parts:
        texts += [f"### {part.name}", _table_of(part, folder / f"{part.name}.json")]
    return "\n\n".join(texts)


def _table_of(part: Part, path: Path) -> str:
    """Let a part's own module write its figures, however far they go."""
    if not path.exists():
        return "no figures"
    module: Any = importlib.import_module(part.module)
    return module.table(json.loads(path.read_text()))


def main(arguments: Arguments) -> None:
    """Run the parts and print the tables; bad input is one line on stderr and exit code 2."""
    with refusing(arguments.out / "on_gpu.json"), tempfile.TemporaryDirectory() as temporary:
        if arguments.minutes <= 0:
            raise ValueError(f"--minutes {arguments.minutes}: must be above 0")
        scratch = arguments.scratch or Path(temporary)
        parts = chosen_parts(arguments, scratch)
        figures = run(arguments, parts, scratch)
        print(summary(figures, arguments.out, parts))
    sys.exit(any(part["how"] == "failed" for part in figures["parts"]))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
