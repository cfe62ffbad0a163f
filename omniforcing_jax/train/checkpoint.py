"""Save all that a resumed run needs, by Orbax; restore all of it or nothing.

A checkpoint holds the trainer's state, the data position, the run's configuration, and the metrics that are not yet
written. Orbax copies the state to the host, writes it in the background to a temporary folder, and renames that. An
interrupted save leaves the older checkpoint in place.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.train.compare import differences, refuse

S = TypeVar("S")


@dataclasses.dataclass(frozen=True)
class Saved(Generic[S]):
    """What a checkpoint holds.

    Attributes:
      state: the trainer.
      position: of the data iterator.
      pending: values of metrics since the last line that was written, by name.
      config: the run's resolved configuration as JSON has it, or None where it was not given.
    """

    state: S
    position: Any
    pending: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    config: dict | None = None


def open_manager(folder: Path, *, keep: int = 2, keep_every: int | None = None) -> Any:
    """Open (or create) a folder of checkpoints.

    Args:
      folder: one subfolder per step goes here.
      keep: how many of the newest stay.
      keep_every: checkpoints at multiples of so many steps stay as well.
    """
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every, enable_async_checkpointing=True, cleanup_tmp_directories=True
    )
    handlers = {  # named here, so that a fresh process can ask for an item's metadata before it restores any
        "state": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "run": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)


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
    """Read the newest checkpoint, or None where there is none.

    Args:
      manager: from `open_manager`.
      like: a state of the same tree, shapes and shardings.
      config: what the checkpoint must have been made by, as `compare.plain` gives it; None takes any.

    Raises:
      ValueError: if the checkpoint is of another configuration, tree or shapes (names what differs), or damaged.
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        return None
    folder = manager.directory / str(step)
    run = {"config": None, "pending": {}}
    if (folder / "run").exists():  # checkpoints of before this item have a state and a position only
        run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
    if config is not None and run["config"] is not None:
        refuse(folder, "made by another configuration", differences(run["config"], config))
    refuse(folder, "a checkpoint of another configuration", _other_leaves(manager.item_metadata(step)["state"], like))
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
        data=ocp.args.JsonRestore(),
    )
    try:
        found = manager.restore(step, args=items)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{folder}: damaged: {str(error).strip().splitlines()[0]}") from error
    return Saved(state=found["state"], position=found["data"], pending=run["pending"], config=run["config"])


def check_space(folder: Path, state: Any, keep: int) -> None:
    """Refuse a disk on which the checkpoints of a run will not fit.

    A new checkpoint is written before an old one goes, so there is one more than `keep` for a moment.

    Raises:
      ValueError: names the folder, what is needed and what is free.
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
