"""Saving a trainer and its data position together, by Orbax; restoring both or neither.

Orbax writes to a temporary folder and renames it, so an interrupted save leaves the
older checkpoint in place.
"""

from pathlib import Path
from typing import Any

import jax

from omniforcing_jax.train.state import TrainState


def open_manager(folder: Path, *, keep: int = 2) -> Any:
    """Open (or create) a folder of checkpoints that keeps the newest `keep`."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def save(manager: Any, state: TrainState, position: dict) -> None:
    """Write the state and the data position as one checkpoint, named by its step."""
    import orbax.checkpoint as ocp

    manager.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position)),
        force=True,
    )
    manager.wait_until_finished()


def restore(manager: Any, like: TrainState) -> tuple[TrainState, dict] | None:
    """Read the newest checkpoint, or None where there is none.

    Raises:
      ValueError: if the checkpoint's tree or shapes are not those of `like` (another config).
    """
    import orbax.checkpoint as ocp

    if manager.latest_step() is None:
        return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
    try:
        restored = manager.restore(manager.latest_step(), args=args)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manager.directory}: checkpoint of another configuration: {error}") from error
    return restored["state"], restored["data"]
