"""Judge a media file in one call: what the command `judge` writes as JSON."""

from typing import Any

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.judge.report import judge
from omniforcing_jax.judge.seams import Blocks


def judge_file(path: AnyPath, *, block_seconds: float = 1.0, first_block_frames: int = 1) -> dict[str, Any]:
    """Measure synchrony, block borders, levels and drift of a media file; no weights and no accelerator are needed.

    Args:
        path: A file of any size, rates and number of channels.
        block_seconds: Length of the blocks whose borders are looked for.
        first_block_frames: Frames of the first block.

    Returns:
        All figures by name, see `judge.report`; None stands for what this file does not show.

    Raises:
        ValueError: In one line, if the file cannot be read or has nothing that can be judged.
    """
    return judge(read_media(path), Blocks(seconds=block_seconds, first_frames=first_block_frames))
