"""Copy the reference's ODE pairs (an LMDB) into a store of ours; docs/pairs.md has both formats.

Several processes may copy side by side, with --process P --processes N. A rerun goes on where the last one stopped.

Source: OmniForcing@50a271f:ltx_distillation/ode/create_lmdb.py.
Hardware: a disk with as much room again.
Expect: the number of rows copied.

    python -m experiments.import_pairs --lmdb ode_lmdb --out pairs --shards 64 --teacher ltx-2-dev
"""

import dataclasses
import logging
from pathlib import Path

from experiments.cli_errors import refusing
from experiments.script import read_flags, start_logging
from omniforcing_jax.train.lmdb_pairs import import_pairs, open_lmdb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Copy what a store of ODE pairs lacks."""

    lmdb: Path
    """LMDB folder of the reference's pairs."""
    out: Path
    """Store to write or to go on with."""
    teacher: str
    """Name of the teacher that made them; a training can ask for it."""
    shards: int = 64
    """Files of the store."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels of the entries, for an LMDB that does not hold them."""
    process: int = 0
    """Which of the processes this is, from 0."""
    processes: int = 1
    """Processes that copy side by side."""


def main(arguments: Arguments) -> None:
    """Copy; bad input is one line on stderr and exit code 2."""
    start_logging()
    part = {"process": arguments.process, "processes": arguments.processes}
    with refusing(), open_lmdb(arguments.lmdb) as get:
        count = import_pairs(
            get, arguments.out, shards=arguments.shards, teacher=arguments.teacher, sigmas=arguments.sigmas, **part
        )
        logging.info("%s: %d rows copied", arguments.out, count)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
