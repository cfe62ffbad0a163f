"""The first pass over the videos: measure each file once, and remember what was found, so that a rerun goes on."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from experiments.videos.buckets import Bucket, Piece
from experiments.videos.listing import Video
from experiments.videos.scenes import Rules, find_pieces
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.judge.media import read_media
from omniforcing_jax.strict_json import read_object, shorten
from omniforcing_jax.train.compare import plain

log = logging.getLogger(__name__)

FOUND = "found"


class Clip(NamedTuple):
    """A clip that will be encoded."""

    path: Path
    caption: str
    piece: Piece


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for in every file.

    Attributes:
        sizes: Heights and widths of the buckets.
        lengths: Seconds of the buckets.
        rules: What a clip must be like.
    """

    sizes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    rules: Rules

    def describe(self, video: Video) -> dict[str, Any]:
        """Return all that the answer for a file depends on, as JSON has it."""
        about = video.path.stat()
        asked = dataclasses.asdict(self) | {"path": str(video.path), "bytes": about.st_size, "time": about.st_mtime_ns}
        return plain(asked) or {}


def look(videos: list[Video], folder: Path, search: Search) -> tuple[list[Clip], Counter[str]]:
    """Find the clips of all videos.

    Args:
        videos: The files with their captions.
        folder: Where the answer for each file is kept.
        search: What is looked for.

    Returns:
        The clips, and how often something was dropped for which reason.
    """
    clips, dropped = [], Counter()
    for number, video in enumerate(videos):
        if video.caption is None:
            dropped["no caption"] += 1
            continue
        pieces, faults = _look_at(video, folder / FOUND / f"{number:07}.json", search)
        clips += [Clip(video.path, video.caption, piece) for piece in pieces]
        dropped.update(faults)
        if (number + 1) % 100 == 0:
            log.info("%d/%d videos looked at, %d clips", number + 1, len(videos), len(clips))
    return clips, dropped


def _look_at(video: Video, kept: Path, search: Search) -> tuple[list[Piece], list[str]]:
    asked = search.describe(video)
    known = read_object(kept) if kept.exists() else {}
    if known.get("asked") == asked:
        pieces = [Piece(Bucket(*each[:3]), float(each[3])) for each in known["pieces"]]
        return pieces, known["dropped"]
    try:
        pieces, faults = find_pieces(read_media(video.path), search.sizes, search.lengths, search.rules)
    except ValueError as error:
        log.warning("%s", shorten(str(error)))
        pieces, faults = [], ["unreadable"]
    found = [[*piece.bucket, piece.start_s] for piece in pieces]
    write_json(kept, {"asked": asked, "pieces": found, "dropped": faults})
    return pieces, faults
