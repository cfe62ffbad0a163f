"""Judge a media file, alone or beside a reference: what the command `judge` writes as JSON."""

from typing import Any

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.judge.media import Media, read_media
from omniforcing_jax.judge.reference import measure_agreement
from omniforcing_jax.judge.report import judge_media, subtract
from omniforcing_jax.judge.seams import Blocks


def judge_file(
    path: AnyPath, reference: AnyPath | None = None, *, block_seconds: float = 1.0, first_block_frames: int = 1
) -> dict[str, Any]:
    """Measure synchrony, block borders, levels and drift of a media file. No weights and no accelerator are needed.

    Args:
        path: A file of any size, rates and number of channels.
        reference: A file to compare it with.
        block_seconds: Length of the blocks whose borders are looked for, in both files.
        first_block_frames: Frames of the first block.

    Returns:
        The figures of the file by name, as `report` describes them. With a reference, those of `judge_pair`.

    Raises:
        ValueError: If a file cannot be read, or if nothing in it can be judged; names the file.
    """
    blocks = Blocks(seconds=block_seconds, first_frames=first_block_frames)
    media = read_media(path)
    return judge_media(media, blocks) if reference is None else judge_pair(media, read_media(reference), blocks)


def judge_pair(media: Media, reference: Media, blocks: Blocks) -> dict[str, Any]:
    """Judge a file and its reference, both read already.

    Returns:
        `file` and `reference`: figures of each. `difference`: those of the file minus those of the reference.
        `agreement`: how near the two are, frame by frame and moment by moment.
    """
    figures, expected = judge_media(media, blocks), judge_media(reference, blocks)
    return {
        "file": figures,
        "reference": expected,
        "difference": subtract(figures, expected),
        "agreement": measure_agreement(media, reference),
    }
