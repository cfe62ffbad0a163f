"""Copy the reference's ODE pairs (an LMDB) into a store of ours; docs/pairs.md has both formats.

Source: OmniForcing stage 2 (specs/omniforcing.md 7.3).
Hardware: a disk with as much room again.
Command: python -m experiments.import_pairs --lmdb ode_lmdb --out pairs --shards 64 --teacher ltx-2-dev
  (with --process P --processes N, N of them side by side; a rerun goes on where the last one stopped)
Expect: the number of rows copied.
"""

import logging
from pathlib import Path

import tyro

from experiments import mains
from omniforcing_jax.train.lmdb_pairs import import_pairs, open_lmdb


def main(
    lmdb: Path,
    out: Path,
    teacher: str,
    shards: int = 64,
    sigmas: tuple[float, ...] | None = None,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Copy what is missing of `lmdb` into `out`; `sigmas` is for a file that does not say its noise levels."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with mains.refusing(), open_lmdb(lmdb) as get:
        count = import_pairs(
            get, out, shards=shards, teacher=teacher, sigmas=sigmas, process=process, processes=processes
        )
    logging.info("%s: %d rows copied", out, count)


if __name__ == "__main__":
    tyro.cli(main)
