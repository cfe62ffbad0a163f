"""The loop: batches in, checkpoints and metrics out; the only place of training that does I/O."""

import dataclasses
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omniforcing_jax.train import checkpoint
from omniforcing_jax.train.state import TrainState
from omniforcing_jax.train.step import Report, Step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, where to write and how often.

    Attributes:
      folder: checkpoints and `metrics.jsonl` go here; a run found here is continued.
      steps: stop after this many optimiser steps in all.
      log_every, save_every: in steps.
      minutes: stop (with a checkpoint) after so much wall time in this call; None is no bound.
    """

    folder: Path
    steps: int
    log_every: int = 20
    save_every: int = 500
    minutes: float | None = None


class NotFinite(RuntimeError):
    """A loss or gradient stopped being a number; the last checkpoint is the last good step."""


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a wish to stop that the loop can ask for."""
    wishes = []
    previous = {s: signal.signal(s, lambda number, _: wishes.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(wishes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _progress(total: int, start: int):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, transient=True)
    return progress, progress.add_task("", total=total, completed=start)


def train(
    config: LoopConfig,
    state: TrainState,
    step: Step,
    batches: Any,
    *,
    describe: dict | None = None,
) -> TrainState:
    """Run `step` until `config.steps`, resuming what `config.folder` holds.

    A resumed run equals an unbroken one: parameters, optimiser, key and data position
    are restored together.

    Args:
      config: see LoopConfig.
      state: the fresh state; replaced by the newest checkpoint where there is one.
      step: from `make_step`.
      batches: Grain iterator (`next`, `get_state`, `set_state`).
      describe: the run's resolved configuration, written beside the checkpoints.

    Raises:
      NotFinite: when loss, gradient or parameters are not finite at a logged step.
      ValueError: when the folder holds a checkpoint of another configuration.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    manager = checkpoint.open_manager(config.folder / "checkpoints")
    found = checkpoint.restore(manager, state)
    if found is not None:
        state, position = found
        batches.set_state(position)
        log.info("resumed %s at step %d", config.folder, int(state.step))
    if describe is not None:
        (config.folder / "config.json").write_text(json.dumps(describe, indent=2, default=str))
    start, begun = int(state.step), time.monotonic()
    progress, task = _progress(config.steps, start)
    plain = not progress.console.is_terminal
    with _stop_on_signal() as told_to_stop, (config.folder / "metrics.jsonl").open("a") as metrics_file, progress:
        for number in range(start, config.steps):
            state, report = step(state, next(batches))
            done = number + 1
            if done % config.log_every == 0 or done == config.steps:
                line = _read(report.metrics, done, time.monotonic() - begun, (done - start))
                metrics_file.write(json.dumps(line) + "\n")
                metrics_file.flush()
                text = " ".join(f"{k} {v:.4g}" for k, v in line.items() if k != "step")
                progress.update(task, completed=done, description=text)
                if plain:
                    log.info("step %d/%d %s", done, config.steps, text)
                if not np.all(report.finite):
                    raise NotFinite(f"{config.folder}: step {done}: not finite: {', '.join(_culprits(report))}")
            out_of_time = config.minutes is not None and time.monotonic() - begun > 60 * config.minutes
            if done % config.save_every == 0 or done == config.steps or told_to_stop() or out_of_time:
                checkpoint.save(manager, state, batches.get_state())
            if told_to_stop() or out_of_time:
                log.info("stopped at step %d with a checkpoint", done)
                break
    manager.close()
    return state


def _read(metrics: dict[str, jax.Array], step: int, seconds: float, steps: int) -> dict[str, float | int]:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return {"step": step, **values, "s_per_step": seconds / steps}


def _culprits(report: Report) -> list[str]:
    return [name for name, finite in zip(report.checked, np.asarray(report.finite), strict=True) if not finite]
