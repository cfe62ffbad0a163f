"""Metrics of a run: a line of JSON every so many steps, TensorBoard beside it if asked for.

A value in a line is the mean over the steps since the last line that have it: a step of the critic alone has none of
the generator. A resumed run drops the lines after its checkpoint and writes them again. Values that were waiting for
their line are in the checkpoint, so the file becomes that of an unbroken run, but for the times.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax

from omniforcing_jax.io.atomic_write import replacing
from omniforcing_jax.io.extras import need

FILE = "metrics.jsonl"


class Recorder:
    """Collects the metrics of steps and writes their means."""

    def __init__(self, folder: Path, step: int, pending: dict[str, list[float]], *, tensorboard: bool = False):
        """Go on with the file in `folder` after `step`, with the values that were waiting there.

        Raises:
            ValueError: If tensorboard is wanted and not installed.
        """
        self._pending = {name: list(values) for name, values in pending.items()}
        self._new: list[dict[str, jax.Array]] = []
        speaks = jax.process_index() == 0
        self._board = _open_board(folder, step) if tensorboard and speaks else None
        self._file = open_after(folder / FILE, step) if speaks else open(os.devnull, "w")  # noqa: SIM115

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of one step; they stay on the device."""
        self._new.append(metrics)

    def pending(self) -> dict[str, list[float]]:
        """Read the values that wait for their line; waits for the device."""
        for metrics in jax.device_get(self._new):
            for name, value in metrics.items():
                self._pending.setdefault(name, []).append(float(value))
        self._new = []
        return {name: list(values) for name, values in self._pending.items()}

    def write(self, step: int, seconds_per_step: float) -> dict[str, float | int]:
        """Write and return the line of `step`."""
        means = {name: math.fsum(values) / len(values) for name, values in self.pending().items()}
        self._pending = {}
        line = {"step": step, **means, "s_per_step": seconds_per_step}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in means.items():
                self._board.add_scalar(name, value, step)
        return line

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def open_after(path: Path, step: int) -> Any:
    """Open a file of metrics to append to, without the lines after `step` and without one that was cut off."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            known = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            known = False  # killed while writing
        if known:
            kept.append(line + "\n")
    with replacing(path) as new:
        new.write_text("".join(kept))
    return path.open("a")


def _open_board(folder: Path, step: int) -> Any:
    need("tensorboardX", extra="tensorboard")
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
