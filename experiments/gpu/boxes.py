"""Parts one after the other, each in a process of its own that ends when its time is over.

A part that hangs is told to stop (SIGTERM), then killed with all processes that it started. What it wrote stays, and
the next part begins. Time that a part leaves unused goes to the parts after it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 0.08  # of a box, between the request to stop and the kill
INNER = 0.85  # of a box, which is what the part itself is told that it has
ERROR_LINES = 12  # of a failed part's output


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a run.

    Attributes:
        name: also of its JSON file.
        share: of the run's time, beside the other parts' shares.
        module: script that takes --json and --minutes.
        arguments: its other flags.
    """

    name: str
    share: float
    module: str
    arguments: tuple[str, ...] = ()

    def command(self, folder: Path, seconds: float) -> list[str]:
        """Return what a shell would run, for a part that has so many seconds."""
        own = ("--json", str(folder / f"{self.name}.json"), "--minutes", f"{INNER * seconds / 60:.3f}")
        return [sys.executable, "-m", self.module, *own, *self.arguments]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part ended.

    Attributes:
        part: name.
        how: "done", "failed" or "out of time".
        seconds: that it took, of `box_s` that it had.
        error: the last lines of a failed part's output.
    """

    part: str
    how: str
    seconds: float
    box_s: float
    error: str | None = None


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    seconds: float,
    environment: Mapping[str, str],
    on_end: Callable[[Outcome], None],
) -> None:
    """Run all parts within so many seconds; their output goes to `on_gpu.log` in the folder.

    Args:
        parts: in their order.
        folder: of the JSON files.
        seconds: for all of them.
        environment: variables of the parts' processes.
        on_end: called after each part.
    """
    ends = time.monotonic() + seconds
    for number, part in enumerate(parts):
        box = (ends - time.monotonic()) * part.share / sum(each.share for each in parts[number:])
        on_end(run_boxed(part.name, part.command(folder, box), box, folder / "on_gpu.log", environment))


def run_boxed(name: str, command: list[str], seconds: float, log: Path, environment: Mapping[str, str]) -> Outcome:
    """Run a command for at most so many seconds; its output is appended to a file."""
    begun = time.monotonic()
    with log.open("ab") as out:
        out.write(f"\n== {name}: {' '.join(command)}\n".encode())
        out.flush()
        start = out.tell()
        # A group of its own, so that it can be killed whole; no session of its own, which could outlive the machine.
        child = subprocess.Popen(command, stdout=out, stderr=out, env=dict(environment), process_group=0)
        try:
            ended = _ends_within(child, seconds * (1 - GRACE))
        finally:
            _stop(child, seconds - (time.monotonic() - begun))
    took = round(time.monotonic() - begun, 1)
    how = "out of time" if not ended else "failed" if child.returncode else "done"
    error = _last_lines(log, start) if how == "failed" else None
    return Outcome(part=name, how=how, seconds=took, box_s=round(seconds, 1), error=error)


def _ends_within(child: subprocess.Popen, seconds: float) -> bool:
    try:
        child.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(child: subprocess.Popen, grace: float) -> None:
    """Tell a process that still runs to stop, and kill what is left of its group."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        _ends_within(child, grace)
    try:
        os.killpg(child.pid, signal.SIGKILL)  # its children, too, also where it ended by itself
    except ProcessLookupError:
        return
    child.wait()


def _last_lines(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return "\n".join(file.read().decode(errors="replace").splitlines()[-ERROR_LINES:])
