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
      steps: of each training.
      seconds: length of clips, in trainings and from the student.
      sample: whether trainings make sample clips at their end.
    """

    steps: int = 2
    seconds: int = 5
    sample: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
      what: what it does, in a few words.
      module: as `python -m` has it.
      flags: its flags as the pages have them.
      short: flags that the walk adds.
    """

    what: str
    module: str
    flags: str
    short: str = ""

    @property
    def words(self) -> list[str]:
        """Module, flags and values."""
        return [self.module, *shlex.split(self.flags), *shlex.split(self.short)]

    def __str__(self) -> str:
        return f"python -m {shlex.join(self.words)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walked:
    """A command that was run.

    Attributes:
      step: the command.
      seconds: wall time.
      code: exit code, 0 is good.
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
    pairs = f"--teacher ltx2 --contexts contexts {negative} --folder pairs"
    causal = f"--student runs/stage2/weights {scored}"
    return (
        Step(
            what="convert LTX-2 and Gemma",
            module="converters",
            flags="convert --from ltx-2.safetensors --from gemma-3-12b/ --out ltx2",
            short="--height 64 --width 64",
        ),
        Step(
            what="encode the prompts",
            module="omniforcing_jax",
            flags="contexts --prompts prompts.txt --weights ltx2 --dtype bfloat16 --out prompts.safetensors",
        ),
        Step(
            what="make a store of them",
            module="experiments.import_contexts",
            flags="--from prompts.safetensors --folder contexts",
        ),
        Step(what="try pairs", module="experiments.make_pairs", flags=f"{pairs} --try 1", short=length),
        Step(what="make pairs", module="experiments.make_pairs", flags=pairs, short=length),
        Step(
            what="stage 1, bidirectional DMD",
            module="experiments.stage1_dmd",
            flags=f"--student ltx2 {scored} --folder runs/stage1",
            short=f"{short} {length}",
        ),
        Step(
            what="stage 2, ODE regression",
            module="experiments.stage2_ode",
            flags="--student runs/stage1/weights --contexts contexts --pairs pairs --folder runs/stage2",
            short=f"{short} {length} {held}",
        ),
        Step(
            what="stage 3, self-forcing DMD",
            module="experiments.stage3_self_forcing",
            flags=f"{causal} --folder runs/stage3",
            short=f"{short} {rolled}",
        ),
        Step(
            what="causal DMD, in place of stage 3",
            module="experiments.causal_dmd",
            flags=f"{causal} --pairs pairs --folder runs/causal_dmd",
            short=f"{short} {length} {held}",
        ),
        Step(
            what="stream the student",
            module="omniforcing_jax",
            flags='stream --weights runs/stage3/weights --prompt "a red ball" --out clip.mp4',
            short=length,
        ),
        Step(
            what="export it to diffusers",
            module="converters",
            flags="export --from runs/stage3/weights --to diffusers --out student",
        ),
        Step(what="load it there", module="experiments.dry_run.stock", flags="student"),
    )


def prepare(folder: Path) -> None:
    """Write what a user brings: LTX-2 as published, Gemma's folder, and prompts.

    Raises:
      ValueError: if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--folder {folder}: is not empty; choose another, the walk begins anew")
    folder.mkdir(parents=True, exist_ok=True)
    published.save_ltx2(folder / "ltx-2.safetensors")
    published.save_gemma(folder / "gemma-3-12b")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")


def in_a_process(folder: Path, words: list[str]) -> int:
    """Run a module in a process of its own, as a user does; its output is the walk's."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
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
