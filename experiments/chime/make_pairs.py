"""Write trajectories of chime's teacher into a store, for a stage 2 that learns from them.

Run it after train_teacher; a rerun goes on where the last one stopped. `train_student --entries teacher` reads the
store.

Hardware: two CPU cores.

    python -m experiments.chime.make_pairs --count 384
"""

import dataclasses
from pathlib import Path

from experiments.chime import train_teacher
from experiments.chime.world import pairs, recipe
from experiments.script import read_flags, start_logging


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write trajectories of chime's teacher; the prompt of row i is that of training world i."""

    teacher: Path = recipe.RUNS / "teacher_third"
    """Folder of the teacher's run."""
    out: Path = pairs.FOLDER
    """Store to write or to go on with."""
    count: int = 384
    """Trajectories in all."""
    batch: int = 16
    """Trajectories at once."""


def main(arguments: Arguments) -> None:
    """Write what is missing."""
    start_logging()
    pairs.write(arguments.out, train_teacher.trained(arguments.teacher), arguments.count, arguments.batch)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
