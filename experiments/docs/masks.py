"""One rule of visibility, drawn twice: as the masks of the four attentions, and as the three regimes."""

from typing import NamedTuple

import numpy as np

from experiments.docs.facts import model, sampler
from experiments.docs.svg import MARGIN, Drawing
from omniforcing_jax.layout import Block
from omniforcing_jax.nn.mask import visible

BLOCKS = 3  # in the picture of the four masks
FRAME = 4  # video tokens of a latent frame in it: few, so that the parts can be seen
SIDE = 176  # pixels of a mask


class Run(NamedTuple):
    """Consecutive tokens of one block; sinks belong to block 0 and are pinned."""

    tokens: int
    block: int
    kind: str
    pinned: bool = False


def video_runs(blocks: tuple[Block, ...]) -> list[Run]:
    """Return the video tokens by block."""
    return [Run(block.video_frames * FRAME, k, "video", k == 0) for k, block in enumerate(blocks)]


def audio_runs(blocks: tuple[Block, ...]) -> list[Run]:
    """Return sinks and audio tokens by block."""
    sinks = Run(model().sinks, 0, "sink", True)
    return [sinks, *(Run(block.audio_frames, k, "audio", k == 0) for k, block in enumerate(blocks))]


def sees(queries: list[Run], keys: list[Run], window: int) -> np.ndarray:
    """Apply the package's own rule to runs of tokens."""
    of_queries, of_keys = (np.array([run.block for run in runs], np.int32) for runs in (queries, keys))
    return visible(of_queries, of_keys, np.array([run.pinned for run in keys]), window)


def draw_masks() -> Drawing:
    """Draw who may attend to whom in the four attentions of the first blocks."""
    picture = Drawing(960, 364, "Attention masks of the four causal attentions")
    blocks = tuple(sampler().layout.block(k) for k in range(BLOCKS))
    video, audio = video_runs(blocks), audio_runs(blocks)
    sites = (
        ("video_self", "video reads video", video, video),
        ("audio_self", "audio reads audio", audio, audio),
        ("a2v", "video reads audio", video, audio),
        ("v2a", "audio reads video", audio, video),
    )
    for i, (name, under, queries, keys) in enumerate(sites):
        x = MARGIN + 26 + i * 232
        _heading(picture, name, under, x)
        _mask(picture, queries, keys, x)
    words = (
        "Rows are queries, columns are keys, numbers are blocks; a filled cell may be attended to.",
        f"One block table makes all four. The {model().sinks} audio sinks (violet) are in block 0: everyone sees them.",
    )
    picture.lines(MARGIN, 320, words, 22)
    return picture


def _mask(picture: Drawing, queries: list[Run], keys: list[Run], x: float, y: float = 96) -> None:
    rows, columns = (SIDE / sum(run.tokens for run in runs) for runs in (queries, keys))
    seen = sees(queries, keys, BLOCKS)
    picture.rect(x, y, SIDE, SIDE, "faint")
    top = y
    for i, query in enumerate(queries):
        left = x
        for j, key in enumerate(keys):
            if seen[i, j]:
                fill = "sink" if key.kind == "sink" else f"{key.kind}{'' if key.block % 2 else '-pale'}"
                picture.rect(left, top, key.tokens * columns, query.tokens * rows, fill)
            left += key.tokens * columns
        top += query.tokens * rows
    _block_names(picture, queries, keys, x, y)


def _block_names(picture: Drawing, queries: list[Run], keys: list[Run], x: float, y: float) -> None:
    """Write each block's number beside its rows and above its columns, and draw its borders."""
    for runs, is_rows in ((queries, True), (keys, False)):
        scale, at = SIDE / sum(run.tokens for run in runs), 0.0
        for k in range(BLOCKS):
            size = scale * sum(run.tokens for run in runs if run.block == k)
            middle = at + max(size / 2, 4)
            at += size
            if is_rows:
                picture.text(x - 6, y + middle + 4, str(k), size=11, anchor="end", fill="soft")
            else:
                picture.text(x + middle, y - 6, str(k), size=11, anchor="middle", fill="soft")
            ends = ((x, y + at), (x + SIDE, y + at)) if is_rows else ((x + at, y), (x + at, y + SIDE))
            picture.line(list(ends), "paper", thick=1.5)


def draw_regimes() -> Drawing:
    """Draw the network's three regimes as the masks that they are."""
    picture = Drawing(960, 420, "Teacher, masked student and streaming student as attention masks")
    last, cell = 8, 24
    ring = sampler().past_blocks
    everyone = np.ones((last, last), bool)
    index = np.arange(last, dtype=np.int32)
    causal = visible(index, index, index < sampler().pinned, ring + 1)
    _blocks(picture, "Teacher", "bidirectional, whole clip", everyone, MARGIN + 20, cell)
    _blocks(picture, "Masked student", "whole clip, block-causal", causal, MARGIN + 270, cell)
    _stream(picture, causal, MARGIN + 520, cell)
    words = (
        "One network serves all three. Data differs: attention masks, positions, time embeddings, cached keys.",
        f"Here the window is {ring + 1} blocks, the current one and {ring} in the ring, and block 0 is pinned.",
    )
    picture.lines(MARGIN, 376, words, 22)
    return picture


def _blocks(picture: Drawing, name: str, under: str, seen: np.ndarray, x: float, cell: int, y: float = 92) -> None:
    _heading(picture, name, under, x)
    for q in range(len(seen)):
        picture.text(x - 6, y + q * cell + 16, str(q), size=11, anchor="end", fill="soft")
        picture.text(x + q * cell + cell / 2, y - 6, str(q), size=11, anchor="middle", fill="soft")
        for k in range(len(seen)):
            fill = (
                "faint"
                if not seen[q, k]
                else "now"
                if q == k
                else "sink"
                if k == 0 and q and not seen.all()
                else "video-pale"
            )
            picture.rect(x + k * cell, y + q * cell, cell - 1.5, cell - 1.5, fill, radius=2)


def _heading(picture: Drawing, name: str, under: str, x: float) -> None:
    picture.text(x, 40, name, size=16, bold=1)
    picture.text(x, 60, under, size=12, fill="soft")


def _stream(picture: Drawing, causal: np.ndarray, x: float, cell: int, y: float = 92) -> None:
    """Draw the last row alone, its keys in the order in which the cache holds them."""
    _heading(picture, "Streaming student", "one block at a time against the ring cache", x)
    block = len(causal) - 1
    top = y + block * cell
    picture.text(x - 6, top + 16, str(block), size=11, anchor="end", fill="soft")
    ring = [k for k in range(1, block) if causal[block, k]]
    slots = sorted(ring, key=lambda k: (k - 1) % sampler().past_blocks)
    at = x
    for fill, words, keys in (("now", "fresh", [block]), ("sink", "pinned", [0]), ("video-pale", "ring", slots)):
        for i, k in enumerate(keys):
            picture.rect(at + i * (cell + 8), top, cell + 6, cell - 1.5, fill, radius=2)
            shade = "ink" if fill == "video-pale" else "paper"
            picture.text(at + i * (cell + 8) + cell / 2 + 3, top + 16, str(k), size=12, anchor="middle", fill=shade)
        middle = at + len(keys) * (cell + 8) / 2 - 1
        picture.text(middle, top - 10, words, size=12, anchor="middle", fill="soft")
        at += len(keys) * (cell + 8) + 14
    words = (
        "The last row of the masked student, alone.",
        "Earlier rows are not computed again: their",
        "keys and values are in the cache, in the",
        "order of its slots, and hidden ones are gone.",
    )
    picture.lines(x, y + 22, words, 21)
    legend = (("now", "itself"), ("sink", "pinned"), ("video-pale", "in the window"), ("faint", "hidden"))
    for i, (fill, name) in enumerate(legend):
        left = MARGIN + 20 + i * 130
        picture.rect(left, 310, 16, 16, fill, radius=2)
        picture.text(left + 24, 323, name, size=12, fill="soft")
