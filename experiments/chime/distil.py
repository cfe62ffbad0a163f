"""Make chime's student from nothing but the repository: clips, teacher, stage 2, stage 3, figures.

Every step is a command that can be run by hand. A finished step is not run again, and a training that was stopped goes
on from its checkpoint. `--codecs train` makes the codecs anew, too; otherwise the shipped ones are used.

Hardware: two CPU cores, about five hours with the shipped codecs, three more without. The teacher's phases take 76, 68
and 60 minutes, stage 2 takes 37, stage 3 takes 44.
Expect: `student.json` with figures near those of the shipped student.

    python -m experiments.chime.distil --folder runs/distil
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from experiments.chime.world import encoders
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.io.atomic_write import write_json

LATENTS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make the student, step by step."""

    folder: Path = Path("runs/distil")
    """Folder for clips, runs, weights and figures; what is found there is not made again."""
    codecs: Literal["ship", "train"] = "ship"
    """Use the codecs that ship, or train them first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command: a module below experiments.chime and its arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """What a shell would run."""
        return [sys.executable, "-m", f"experiments.chime.{self.module}", *self.arguments]


def plan(arguments: Arguments) -> list[Step]:
    """List the steps in their order."""
    folder = arguments.folder
    weights, clips = folder / "weights", str(folder / "latents.safetensors")

    def step(name: str, module: str, *rest: str | Path) -> Step:
        return Step(name=name, module=module, arguments=tuple(map(str, rest)))

    def export(part: str, run: str, *more: str | Path) -> Step:
        return step(
            f"export {part} of {run}", "export_networks", "--part", part, "--run", folder / run, "--out", weights, *more
        )

    with_codecs = ("--encoders", weights / "codecs")
    made = []
    if arguments.codecs == "train":
        made = [
            step("video VAE", "train_video_vae", "--folder", folder / "video_vae"),
            step("audio VAE", "train_audio_vae", "--folder", folder / "audio_vae"),
            step(
                "VAEs",
                "export_codecs",
                "--runs",
                folder,
                "--out",
                weights / "codecs",
                "--parts",
                "video_vae",
                "audio_vae",
            ),
        ]
    made.append(step("clips", "encode_clips", "--out", clips, "--count", str(LATENTS), *with_codecs))
    if arguments.codecs == "train":
        made += [
            step("vocoder", "train_vocoder", "--folder", folder / "vocoder", "--data-file", clips, *with_codecs),
            step("its weights", "export_codecs", "--runs", folder, "--out", weights / "codecs", "--parts", "vocoder"),
        ]
    on_clips = ("--data-file", clips)

    def phase(name: str) -> list[Step]:
        run = f"teacher_{name}"
        begin = ("--phase", name, "--begin", weights / "teacher", "--folder", folder / run)
        return [step(f"teacher, {name} phase", "train_teacher", *begin, *on_clips), export("teacher", run)]

    players = ("--teacher", weights / "teacher", "--student", weights / "stage2")
    return [
        *made,
        step("teacher", "train_teacher", "--folder", folder / "teacher", *on_clips),
        export("teacher", "teacher"),
        *phase("second"),
        *phase("third"),
        step("stage 2", "train_student", "--folder", folder / "stage2", "--teacher", weights / "teacher", *on_clips),
        export("stage2", "stage2"),
        step("stage 3", "train_self_forcing", "--folder", folder / "self_forcing", *players),
        export("student", "self_forcing", "--halfway", weights / "stage2"),
        step(
            "figures",
            "evaluate",
            *("--source", "student", "--weights", weights / "student"),
            *("--prompts", "32", "--seconds", "5", "--seed", "0", "--json", folder / "student.json"),
        ),
    ]


def run_all(steps: list[Step], record: Path, run: Callable[[list[str]], object]) -> None:
    """Run what the record does not hold yet, and write down what each step took."""
    done: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    for step in steps:
        if step.name in done:
            continue
        print(f"{step.name}: {' '.join(step.command[1:])}", flush=True)
        begun = time.monotonic()
        run(step.command)
        done[step.name] = round(time.monotonic() - begun, 1)
        write_json(record, done)


def main(arguments: Arguments) -> None:
    """Run every step that is left; one that fails ends it with that step's own message and exit code."""
    weights = arguments.folder / "weights"
    with refusing(arguments.folder / "student.json"):
        steps = plan(arguments)
        weights.mkdir(parents=True, exist_ok=True)
        if not (weights / "codecs").exists():
            shutil.copytree(encoders.FOLDER, weights / "codecs")
    try:
        run_all(steps, arguments.folder / "done.json", lambda command: subprocess.run(command, check=True))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
