"""Kill conversions, exports, saves and trainings at random moments: nothing old is lost, nothing partial is taken.

Every trial begins from the same folder, kills a process with signal 9 at a random moment of its work, looks at what is
left, and does the work again. What a killed one leaves must be the old content, the new content, or a folder that is
refused in one line. The rerun must end with the new content and nothing beside it.

Hardware: a CPU and 1 GB of disk; about ten minutes.
Expect: a line per subject, and no failure.

    python -m experiments.killing.trials --trials 8 --json out/kill_trials.json
"""

import dataclasses
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from experiments.cli_errors import keep_figures, refusing
from experiments.killing.subjects import READY, Subject, make_subjects, start
from experiments.script import read_flags
from omniforcing_jax.io.progress import Bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Run all trials."""

    trials: int = 8
    """Trials of each of the five subjects."""
    seed: int = 0
    """Random seed of the moments."""
    json: Path | None = None
    """File for the figures."""


def wait_until_ready(child: int, folder: Path) -> None:
    """Wait for the file that says that work begins, or for the end of a process that makes none."""
    while not (folder / READY).exists() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def time_work(subject: Subject, folder: Path) -> float:
    """Do the work undisturbed; returns the seconds from its sign, or its start, to its end."""
    subject.begin(folder)
    child = start(lambda: subject.work(folder))
    if subject.has_sign:
        wait_until_ready(child, folder)
    begun = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"{subject.name}: the work fails undisturbed"
    return time.monotonic() - begun


def kill_once(subject: Subject, folder: Path, after_s: float) -> tuple[bool, str]:
    """Run one trial; returns whether the work was under way, and what was found."""
    subject.begin(folder)
    child = start(lambda: subject.work(folder))
    if subject.has_sign:
        wait_until_ready(child, folder)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    was_working = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    found = subject.look(folder)
    subject.finish(folder)
    return was_working, found


def try_subject(subject: Subject, parent: Path, trials: int, rng: random.Random) -> dict[str, Any]:
    """Run all trials of a subject; returns its figures."""
    seconds = time_work(subject, parent / "timed")
    found: Counter[str] = Counter()
    failures, working = [], 0
    with Bar(subject.name, trials, "trials") as bar:
        for trial in bar.over(range(trials)):
            folder, after_s = parent / f"trial{trial}", rng.uniform(0, seconds)
            try:
                was_working, what = kill_once(subject, folder, after_s)
                working, found[what] = working + was_working, found[what] + 1
            except AssertionError as error:
                failures.append(f"after {after_s:.3f} s: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    return {"trials": trials, "seconds": seconds, "killed": working, "found": dict(found), "failures": failures}


def main(arguments: Arguments) -> None:
    """Run all trials and print a line per subject; a failure ends with exit code 2."""
    rng, table = random.Random(arguments.seed), {}
    with refusing(arguments.json), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for subject in make_subjects(folder):
            place = folder / "trials" / subject.name.replace(" ", "-")
            place.mkdir(parents=True)
            table[subject.name] = figures = try_subject(subject, place, arguments.trials, rng)
            found = ", ".join(f"{what} {count}" for what, count in figures["found"].items())
            print(f"{subject.name}: {figures['killed']} of {figures['trials']} killed at work; found {found}")
        keep_figures(arguments.json, table)
        failures = [f"{name}, {failure}" for name, figures in table.items() for failure in figures["failures"]]
        if failures:
            raise ValueError(f"{len(failures)} failures: {'; '.join(failures)}")


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
