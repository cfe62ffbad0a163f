"""Save all that a resumed run needs, by Orbax; restore all of it or nothing.

A checkpoint holds the trainer's state, the data position, the run's configuration, and the metrics that are not yet
written. Orbax copies the state to the host, writes it in the background to a temporary folder, and renames that. An
interrupted save leaves the older checkpoint in place. Checksums of all files are in the folder before it has its name,
and are compared before anything is restored. A damaged checkpoint is set aside, and the one before it restored.
"""

import contextlib
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from omniforcing_jax.parallel import distributed
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.train import checksums
from omniforcing_jax.train.compare import differences, refuse

log = logging.getLogger(__name__)

UNNAMED = "*.orbax-checkpoint-tmp*"  # folders that Orbax still writes

S = TypeVar("S")
ACCEPT = "which accept_changes allows"


class DamagedError(ValueError):
    """A checkpoint cannot be restored, or would be restored as something else."""


@dataclasses.dataclass(frozen=True)
class Saved(Generic[S]):
    """What a checkpoint holds.

    Attributes:
        state: The trainer.
        position: Of the data iterator.
        pending: Values of metrics since the last line that was written, by name.
        config: The run's resolved configuration as JSON has it, or None where it was not given.
    """

    state: S
    position: Any
    pending: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    config: dict | None = None


def open_manager(folder: Path, *, keep: int = 2, keep_every: int | None = None) -> Any:
    """Open (or create) a folder of checkpoints.

    Args:
        folder: One subfolder per step goes here.
        keep: How many of the newest stay.
        keep_every: Checkpoints at multiples of so many steps stay as well.
    """
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=partial(_seal, folder.resolve())),
    )
    handlers = {  # named here, so that a fresh process can ask for an item's metadata before it restores any
        "state": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "run": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)


def _seal(folder: Path) -> None:
    """Write checksums into the checkpoint that is complete now; Orbax then gives it its name."""
    if distributed.speaks():
        for path in folder.glob(UNNAMED):  # there is one: an older one was cleaned up when the folder was opened
            checksums.write(path)


def save(manager: Any, saved: Saved) -> None:
    """Begin to write a checkpoint, named by its step; the state may be donated as soon as this returns.

    The manager's `wait_until_finished` and `close` wait for the writing.
    """
    import orbax.checkpoint as ocp

    run = {"config": saved.config, "pending": saved.pending}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(saved.state), data=ocp.args.JsonSave(saved.position), run=ocp.args.JsonSave(run)
    )
    manager.save(int(saved.state.step), args=items, force=True)


def restore(manager: Any, like: S, config: dict | None = None) -> Saved[S] | None:
    """Read the newest checkpoint that is whole, or None where there is none at all.

    A damaged one is renamed to `damaged-STEP` if an older one is whole, so that its step can be saved again.

    Args:
        manager: From `open_manager`.
        like: a state of the same tree, shapes and shardings.
        config: What the checkpoint must have been made by, as `compare.plain` gives it; None takes any.

    Raises:
        ValueError: If the checkpoint is of another configuration, tree or shapes (names what differs), or if all are
            damaged.
    """
    damaged: list[tuple[int, str]] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = _restore_step(manager, step, like, config)
        except DamagedError as error:
            damaged.append((step, str(error)))
            continue
        for bad, reason in damaged:
            log.warning("%s; going on from step %d", reason, step)
            _set_aside(manager, bad)
        return found
    if damaged:
        raise ValueError(f"{damaged[0][1]}; no older checkpoint is whole: choose another folder to begin anew")
    return None


def _restore_step(manager: Any, step: int, like: S, config: dict | None) -> Saved[S]:
    """Read a checkpoint; raises DamagedError, or ValueError as `restore`."""
    import orbax.checkpoint as ocp

    folder = Path(manager.directory) / str(step)
    fault = checksums.find_fault(folder) if distributed.speaks() else None
    if not distributed.agree(fault is None):
        raise DamagedError(f"{folder}: damaged: {fault or 'see the first process'}")
    run = {"config": None, "pending": {}}
    with _damage_named(folder):
        if (folder / "run").exists():  # checkpoints of before this item have a state and a position only
            run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        others = _other_leaves(manager.item_metadata(step)["state"], like)
    if config is not None and run["config"] is not None:
        refuse(folder, f"made by another configuration, {ACCEPT}", differences(run["config"], config))
    refuse(folder, "a checkpoint of another configuration", others)
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
        data=ocp.args.JsonRestore(),
    )
    with _damage_named(folder):
        found = manager.restore(step, args=items)
    return Saved(state=found["state"], position=found["data"], pending=run["pending"], config=run["config"])


@contextlib.contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Whatever Orbax and its libraries raise on a damaged checkpoint, it is damaged."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{folder}: damaged: {lines[0]}") from error


def _set_aside(manager: Any, step: int) -> None:
    folder = Path(manager.directory)
    if distributed.speaks():
        names = (f"damaged-{step}{mark}" for mark in itertools.chain([""], (f"-{k}" for k in itertools.count(2))))
        (folder / str(step)).rename(next(folder / name for name in names if not (folder / name).exists()))
    distributed.meet(f"{folder}: step {step} is set aside")
    manager.reload()


def check_space(folder: Path, state: Any, keep: int) -> None:
    """Refuse a disk on which the checkpoints of a run will not fit.

    A new checkpoint is written before an old one goes, so there is one more than `keep` for a moment.

    Raises:
        ValueError: Names the folder, what is needed and what is free.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    present = sum(1 for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit())
    needed, free = size * max(keep + 1 - present, 1), shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(f"{folder}: checkpoints need {needed / 1e9:.3g} GB of disk, {free / 1e9:.3g} GB are free")


def _other_leaves(metadata: Any, like: Any) -> list[str]:
    def shapes(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    return differences(shapes(metadata), shapes(like))
