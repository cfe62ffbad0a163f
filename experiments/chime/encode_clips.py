"""Encode rendered clips: what teacher and student train on.

Run it after the codecs were exported (export_codecs).

Hardware: two CPU cores.

    python -m experiments.chime.encode_clips --count 2000
"""

import dataclasses
from pathlib import Path

from experiments.chime.world import encoders, latents
from experiments.script import read_flags, start_logging


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Render training worlds and encode them into one file."""

    out: Path = latents.FILE
    """File to write."""
    count: int = 2000
    """Clips, a multiple of 8."""
    seconds: int = 5
    """Length of each clip, one frame not counted."""
    encoders: Path = encoders.FOLDER
    """Folder of the codecs."""
    workers: int = 1
    """Processes that render."""


def main(arguments: Arguments) -> None:
    """Encode all clips."""
    start_logging()
    codecs = encoders.load_encoders(arguments.encoders)
    latents.write(arguments.out, codecs, arguments.count, arguments.seconds, workers=arguments.workers)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
