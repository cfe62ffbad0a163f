"""The commands of docs/distil.md and docs/pod.md in their order, with the flags that those pages have.

Files and folders are named as there, relative to the folder that the commands run in. What is added is what makes a
walk short: few steps, a picture as small as the tiny network's, a shorter clip.
"""

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.dry_run import published

ROOT = Path(__file__).parents[2]
NEGATIVE = ""  # of the teacher's guidance, as in docs/pod.md
PROMPTS = ("a red ball", "a blue ball", "a green ball", "two balls")

Run = Callable[[Path, list[str]], int]  # (folder to run in, module and its flags) -> exit code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How short the walk is.

    Attributes:
        steps: Of each training.
        seconds: Length of clips, in trainings and from the student.
        sample: Whether trainings make sample clips at their end.
    """

    steps: int = 2
    seconds: int = 2
    sample: bool = True


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        what: What it does, in a few words.
        command: Module and flags as the pages have them.
        short: Flags that the walk adds.
    """

    what: str
    command: str
    short: str = ""

    @property
    def words(self) -> list[str]:
        """Module, flags and values, as `python -m` takes them."""
        return [*shlex.split(self.command), *shlex.split(self.short)]

    def __str__(self) -> str:
        return f"python -m {shlex.join(self.words)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walked:
    """A command that was run.

    Attributes:
        step: The command.
        seconds: Wall time.
        code: Exit code, 0 is good.
    """

    step: Step
    seconds: float
    code: int


def steps(pace: Pace) -> tuple[Step, ...]:
    """List the commands: a converted teacher, contexts, pairs, the stages, a stream, and the way back."""
    every = pace.steps if pace.sample else 0
    short = f"--steps {pace.steps} --log-every 1 --sample-every {every} --sample-prompts 1"
    length, rolled = f"--seconds {pace.seconds}", f"--self-forcing.seconds {pace.seconds}"
    held = f"--held-out 0.25 --evaluate-every {pace.steps}"
    negative = "--negative ''"
    scored = f"--teacher ltx2 --contexts contexts {negative}"
    learned = "--contexts contexts --pairs pairs"
    pairs = f"--teacher ltx2 --contexts contexts {negative} --folder pairs"
    causal = f"--student runs/stage2/weights {scored}"
    return (
        Step(
            "convert LTX-2 and Gemma",
            "converters convert --from ltx-2.safetensors --from gemma-3-12b/ --out ltx2",
            "--height 64 --width 64",
        ),
        Step(
            "encode the prompts",
            "omniforcing_jax contexts --prompts prompts.txt --weights ltx2 --dtype bfloat16 --out prompts.safetensors",
        ),
        Step(
            "make a store of them",
            "experiments.import_contexts --from prompts.safetensors --folder contexts",
        ),
        Step("try pairs", f"experiments.make_pairs {pairs} --try 1", length),
        Step("make pairs", f"experiments.make_pairs {pairs}", length),
        Step(
            "stage 1, bidirectional DMD",
            f"experiments.stage1_dmd --student ltx2 {scored} --folder runs/stage1",
            f"{short} {length}",
        ),
        Step(
            "stage 2, ODE regression",
            f"experiments.stage2_ode --student runs/stage1/weights {learned} --folder runs/stage2",
            f"{short} {length} {held}",
        ),
        Step(
            "stage 3, self-forcing DMD",
            f"experiments.stage3_self_forcing {causal} --folder runs/stage3",
            f"{short} {rolled}",
        ),
        Step(
            "causal DMD, in place of stage 3",
            f"experiments.causal_dmd {causal} --pairs pairs --folder runs/causal_dmd",
            f"{short} {length} {held}",
        ),
        Step(
            "stream the student",
            'omniforcing_jax stream --weights runs/stage3/weights --prompt "a red ball" --out clip.mp4',
            length,
        ),
        Step(
            "export it to diffusers",
            "converters export --from runs/stage3/weights --to diffusers --out student",
        ),
        Step("load it there", "experiments.dry_run.stock student"),
    )


def prepare(folder: Path) -> None:
    """Write what a user brings: LTX-2 as published, Gemma's folder, and prompts.

    Raises:
        ValueError: If the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--folder {folder}: is not empty; choose another, the walk begins anew")
    folder.mkdir(parents=True, exist_ok=True)
    published.save_ltx2(folder / "ltx-2.safetensors")
    published.save_gemma(folder / "gemma-3-12b")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")


def in_a_process(folder: Path, words: list[str]) -> int:
    """Run a module in a process of its own, as a user does; its output is the walk's.

    Programs run once or twice, so XLA's optimisation, which takes most of the time, is left out.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, check=False).returncode


def walk(folder: Path, pace: Pace, run: Run = in_a_process) -> Iterator[Walked]:
    """Run the commands in their order, up to the first that fails."""
    for step in steps(pace):
        print(f"\n# {step.what}\n{step}", flush=True)
        begun = time.monotonic()
        code = run(folder, step.words)
        walked = Walked(step=step, seconds=time.monotonic() - begun, code=code)
        print(f"# exit code {code} after {walked.seconds:.1f} s", flush=True)
        yield walked
        if code:
            return
