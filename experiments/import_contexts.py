"""Copy text contexts that the command `contexts` wrote into a store for trainings; docs/pairs.md has its format.

Several processes may copy side by side, with --process P --processes N. A rerun goes on where the last one stopped.

Hardware: a disk with as much room again.
Expect: the number of rows copied.

    python -m experiments.import_contexts --from prompts.safetensors --folder contexts --shards 64
"""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli_errors import refusing
from experiments.script import read_flags, start_logging
from omniforcing_jax.train.import_contexts import import_contexts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Copy what a store of text contexts lacks."""

    from_: Annotated[Path, tyro.conf.arg(name="from")]
    """Safetensors file that the command `contexts` wrote."""
    folder: Path
    """Store to write or to go on with."""
    shards: int | None = None
    """Files of the store; by default 64, or one per row where there are fewer."""
    process: int = 0
    """Which of the processes this is, from 0."""
    processes: int = 1
    """Processes that copy side by side."""


def main(arguments: Arguments) -> None:
    """Copy; bad input is one line on stderr and exit code 2."""
    start_logging()
    part = {"process": arguments.process, "processes": arguments.processes}
    with refusing():
        count = import_contexts(arguments.from_, arguments.folder, shards=arguments.shards, **part)
        logging.info("%s: %d rows copied", arguments.folder, count)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
