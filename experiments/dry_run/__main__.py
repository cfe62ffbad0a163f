"""Walk the central path at a tiny size: every command from somebody's LTX-2 to a student that diffusers loads.

The files are made here: LTX-2 under its published keys with narrow layers, Gemma's folder, and four prompts. Then the
commands of docs/distil.md and docs/pod.md run, each in a process of its own.

Hardware: CPU, 2 GB of memory, some minutes, of which most is compiling.
Expect: each command with its output and time, then a table. The exit code is 1 if a command fails.

    python -m experiments.dry_run --folder out/dry_run
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

from experiments.cli_errors import refusing
from experiments.dry_run.walk import Pace, Walked, prepare, steps, walk
from experiments.script import read_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Walk the central path at a tiny size."""

    folder: Path | None = None
    """Empty folder to work in, which is kept; by default a temporary one, which is not."""
    steps: int = 2
    """Steps of each training."""
    seconds: int = 2
    """Length of clips in seconds."""
    sample: bool = True
    """Whether trainings make sample clips."""


def table(walked: list[Walked], expected: int) -> str:
    """Say how each command went, a line each."""
    lines = [
        f"{one.seconds:7.1f} s  {'good' if not one.code else f'exit code {one.code}'}  {one.step.what}"
        for one in walked
    ]
    total = sum(one.seconds for one in walked)
    return "\n".join([*lines, f"{total:7.1f} s  {len(walked)} of {expected} commands"])


def main(arguments: Arguments) -> int:
    """Walk; returns the exit code."""
    pace = Pace(steps=arguments.steps, seconds=arguments.seconds, sample=arguments.sample)
    with refusing(), tempfile.TemporaryDirectory(prefix="dry_run") as temporary:
        folder = (arguments.folder or Path(temporary) / "walk").absolute()
        prepare(folder)
        print(f"cd {folder}")
        walked = list(walk(folder, pace))
    print("\n" + table(walked, len(steps(pace))))
    return 1 if walked[-1].code else 0


if __name__ == "__main__":
    sys.exit(main(read_flags(Arguments, __doc__)))
