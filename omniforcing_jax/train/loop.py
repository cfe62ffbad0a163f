"""The loop: batches in, checkpoints and metrics out; the only part of training that does I/O."""

import contextlib
import dataclasses
import datetime
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from omniforcing_jax.io import atomic_write, lock
from omniforcing_jax.io.progress import is_terminal
from omniforcing_jax.parallel import distributed
from omniforcing_jax.strict_json import require
from omniforcing_jax.train import checkpoint
from omniforcing_jax.train.clock import Clock
from omniforcing_jax.train.compare import differences, plain
from omniforcing_jax.train.gradient import Metrics
from omniforcing_jax.train.metrics import FILE, Recorder
from omniforcing_jax.train.state import DistillState, TrainState
from omniforcing_jax.train.step import Report

log = logging.getLogger(__name__)
NAMED = 6  # tensors that an error names

S = TypeVar("S", TrainState, DistillState)


@runtime_checkable
class Batches(Protocol):
    """Batches whose position can be saved, such as `data.batches`."""

    def __next__(self) -> Any:
        """Make the next batch."""
        ...

    def get_state(self) -> Any:
        """Return the position."""
        ...

    def set_state(self, position: Any) -> None:
        """Go to a position."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, where to write and how often.

    Attributes:
        folder: Checkpoints and `metrics.jsonl` go here, with all that results depend on (`config.json`) and the values
            of the last call (`flags.json`); a run found here is continued.
        steps: Stop after this many steps in all.
        log_every: Steps between lines of metrics.
        save_every: Steps between checkpoints.
        save_minutes: No more than so many minutes of work are ever unsaved: a checkpoint is also made when the next
            look would come too late. One process looks at every step, several at every line of metrics. None goes by
            steps alone.
        keep: How many of the newest checkpoints stay.
        keep_every: Checkpoints at multiples of so many steps stay as well; None keeps none beside the newest.
        minutes: Stop (with a checkpoint) after so much wall time in this call; None is no bound.
        tensorboard: Write metrics for TensorBoard too.
        accept_changes: Go on with a run that was made by another configuration, which is refused otherwise.
        patience: Of several processes: seconds that they wait for each other at a line of metrics or a checkpoint
            before the run ends with an error.
    """

    folder: Path
    steps: int
    log_every: int = 20
    save_every: int = 500
    save_minutes: float | None = 15.0
    keep: int = 2
    keep_every: int | None = None
    minutes: float | None = None
    tensorboard: bool = False
    accept_changes: bool = False
    patience: float = distributed.MEETING

    def __post_init__(self):
        """Check ranges."""
        for field in ("steps", "log_every", "save_every", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        for field in ("save_minutes", "minutes"):
            value = getattr(self, field)
            require(value is None or value > 0, field, value, "must be positive; None is no bound")


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something to do now and then, such as sampling clips and drawing a contact sheet of them.

    Attributes:
        every: In steps; the call comes after each step whose count is a multiple.
        call: Takes the steps done and the state, which it must neither donate nor keep (the next step donates it). It
            may take as long as it likes; the time counts as the run's.
    """

    every: int
    call: Callable[[int, Any], None]

    def __post_init__(self):
        """Check ranges."""
        if self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Measure:
    """Metrics that are not a step's, such as the loss on examples that are held out.

    Attributes:
        every: In steps; they are taken after each step whose count is a multiple, and belong to that step.
        call: Takes the state, which it must neither donate nor keep; returns float32 scalars by name.
    """

    every: int
    call: Callable[[Any], Metrics]


class NotFiniteError(RuntimeError):
    """A loss, a gradient or a parameter stopped being a number; no checkpoint holds it."""


def train(
    config: LoopConfig,
    state: S,
    step: Callable[[S, Any], tuple[S, Report]],
    batches: Batches,
    *,
    hooks: tuple[Hook, ...] = (),
    measures: tuple[Measure, ...] = (),
    describe: dict | None = None,
) -> S:
    """Run `step` until `config.steps`, resuming what `config.folder` holds.

    A resumed run equals an unbroken one: state, data position and metrics are saved and restored together.
    SIGTERM and SIGINT end it with a checkpoint; on many hosts JAX's preemption notice does, on all at the same step.

    Args:
        config: See LoopConfig.
        state: The fresh state, a TrainState or a DistillState; replaced by the newest checkpoint where there is one.
        step: From `make_step` or `make_distill_step`.
        batches: See Batches.
        hooks: See Hook.
        measures: See Measure.
        describe: The run's resolved configuration: saved with every checkpoint, and a folder whose checkpoint has
            another is refused.

    Raises:
        NotFiniteError: At the first step whose loss, gradient or parameters are not finite; names them, the last good
            step and the last checkpoint.
        Lost: If another process dies or hangs; see parallel/distributed.py.
        ValueError: Before the first step, when the folder holds a checkpoint of another configuration, damaged ones
            only or files of something else, when another run writes to it, when the disk is too full, or when `minutes`
            is given on many hosts, whose clocks would not agree.
    """
    if config.minutes is not None and jax.process_count() > 1:
        raise ValueError(f"minutes={config.minutes}: {jax.process_count()} processes would not stop at the same step")
    described = plain(describe)
    with contextlib.ExitStack() as stack:
        state, manager, recorder = _begin(config, state, batches, described, stack)
        told_to_stop = stack.enter_context(_stop_on_signal())
        start, begun = int(state.step), time.monotonic()
        progress = stack.enter_context(_Progress(start, config.steps))
        guard, clock = _Guard(config.folder, manager), Clock(config.save_minutes)
        for done in range(start + 1, config.steps + 1):
            state, report = step(state, next(batches))
            recorder.add(report.metrics)
            guard.take(done, report)
            for measure in measures:
                if done % measure.every == 0:
                    guard.check()
                    recorder.add(measure.call(state))
            seconds = time.monotonic() - begun
            stop = told_to_stop(done) or (config.minutes is not None and seconds > 60 * config.minutes)
            to_log, to_save = (
                done % every == 0 or done == config.steps for every in (config.log_every, config.save_every)
            )
            if to_log or jax.process_count() == 1:
                to_save |= clock.is_due()
            if to_log or to_save or stop:
                distributed.meet(f"{config.folder}: step {done}", config.patience)
            if to_log:
                guard.check()
                progress.show(done, recorder.write(done, (time.monotonic() - begun) / (done - start)))
            if to_save or stop:
                guard.check()
                checkpoint.save(manager, checkpoint.Saved(state, batches.get_state(), recorder.pending(), described))
                clock.saved()
            for hook in hooks:
                if done % hook.every == 0:
                    hook.call(done, state)
            if stop:
                log.info("stopped at step %d with a checkpoint", done)
                break
    return state


def _begin(
    config: LoopConfig, state: S, batches: Batches, described: dict | None, stack: contextlib.ExitStack
) -> tuple[S, Any, Recorder]:
    """Check everything and restore what there is; returns the state, the checkpoints and the metrics."""
    _check_folder(config.folder)
    config.folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(_alone(config.folder))
    checkpoint.check_space(config.folder, state, config.keep)
    manager = checkpoint.open_manager(config.folder / "checkpoints", keep=config.keep, keep_every=config.keep_every)
    stack.callback(manager.close)
    found = checkpoint.restore(manager, state, None if config.accept_changes else described)
    if found is not None:
        for line in differences(found.config, described) if config.accept_changes and described is not None else ():
            log.warning("%s: goes on with another configuration: %s", config.folder, line)
        state = found.state
        batches.set_state(found.position)
        log.info("resumed %s at step %d", config.folder, int(state.step))
    pending = {} if found is None else found.pending
    recorder = Recorder(config.folder, int(state.step), pending, tensorboard=config.tensorboard)
    stack.callback(recorder.close)
    if jax.process_index() == 0:
        atomic_write.write_json(config.folder / "flags.json", plain(dataclasses.asdict(config)))
        if described is not None:
            atomic_write.write_json(config.folder / "config.json", described)
    return state, manager, recorder


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose `config.json` is no run's, such as a weights folder: it would be replaced."""
    is_run = (folder / "checkpoints").is_dir() or (folder / FILE).exists()
    if (folder / "config.json").exists() and not is_run:
        raise ValueError(f"{folder}: has a config.json that is no run's and would be replaced; choose another folder")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this run; all processes of another one are refused.

    Raises:
        ValueError: If another run writes to it; says which.
    """
    with contextlib.ExitStack() as stack:
        fault = None
        try:
            if distributed.speaks():
                stack.enter_context(lock.held(folder / lock.NAME, str(folder)))
        except lock.TakenError as error:
            fault = str(error)
        if not distributed.agree(fault is None):
            raise ValueError(fault or f"{folder}: is in use by another run")
        yield


class _Guard:
    """Looks at each step's report one step late, so that the device always has work."""

    def __init__(self, folder: Path, manager: Any):
        self._folder, self._manager = folder, manager
        self._unread: tuple[int, Report] | None = None

    def take(self, step: int, report: Report) -> None:
        """Check the report before this one."""
        self.check()
        self._unread = (step, report)

    def check(self) -> None:
        """Check what was taken last; waits for the device.

        Raises:
            NotFiniteError: See `train`.
        """
        if self._unread is None:
            return
        (step, report), self._unread = self._unread, None
        finite = np.asarray(report.finite)
        if finite.all():
            return
        names = [name for name, good in zip(report.checked, finite, strict=True) if not good]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        saved = self._manager.latest_step()
        raise NotFiniteError(
            f"{self._folder}: step {step}: not finite: {', '.join(names[:NAMED])}{more}; "
            f"the last good step is {step - 1}, the last checkpoint {'none' if saved is None else f'step {saved}'}"
        )


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Turn SIGTERM and SIGINT into a wish to stop that the loop can ask for, by the steps done."""
    if jax.process_count() > 1:  # a wish of one process would leave the others waiting for it
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    wishes = []
    previous = {s: signal.signal(s, lambda number, _: wishes.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda _: bool(wishes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Progress:
    """A bar with the time left on a terminal, lines with it elsewhere."""

    def __init__(self, start: int, steps: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not distributed.speaks())
        self._task = self._bar.add_task("", total=steps, completed=start)
        self._steps = steps

    def __enter__(self) -> "_Progress":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def show(self, done: int, line: dict[str, float | int]) -> None:
        """Show a line of metrics."""
        text = " ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")
        self._bar.update(self._task, completed=done, description=text)
        if not is_terminal():
            left = datetime.timedelta(seconds=round(line["s_per_step"] * (self._steps - done)))
            log.info("step %d/%d, %s left: %s", done, self._steps, left, text)
