"""Copy text contexts that the command `contexts` wrote into a store for trainings; docs/pairs.md has its format.

Hardware: a disk with as much room again.
Command: python -m experiments.import_contexts --from prompts.safetensors --folder contexts --shards 64
  (with --process P --processes N, N of them side by side; a rerun goes on where the last one stopped)
Expect: the number of rows copied.
"""

import logging
from pathlib import Path
from typing import Annotated

import tyro

from experiments import mains
from omniforcing_jax.train.import_contexts import import_contexts


def main(
    from_: Annotated[Path, tyro.conf.arg(name="from")],
    folder: Path,
    shards: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Copy what is missing of `from_` into `folder`; by default in 64 shards, or as many as there are rows."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with mains.refusing():
        count = import_contexts(from_, folder, shards=shards, process=process, processes=processes)
    logging.info("%s: %d rows copied", folder, count)


if __name__ == "__main__":
    tyro.cli(main)
