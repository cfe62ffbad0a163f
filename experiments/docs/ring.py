"""Idea 3: four histories of one block clock in a ring of slots, and pinned keys that move along with the stream."""

from experiments.docs.facts import model, sampler, tokens_per_frame
from experiments.docs.svg import MARGIN, Drawing

NOW = 7  # the block that the upper part is about to make
ROWS = 11  # blocks in the table
COLOURS = ("video-pale", "sink-pale", "now-pale")


def held(slot: int, blocks_done: int) -> int | None:
    """Return the block that a ring slot holds after so many commits; None while it is empty."""
    ring = sampler().past_blocks
    return max((k for k in range(1, blocks_done) if (k - 1) % ring == slot), default=None)


def draw_ring() -> Drawing:
    """Draw the four histories at one moment, and the slots over time."""
    picture = Drawing(960, 690, "Four histories in rings of slots, driven by one block clock")
    picture.text(MARGIN, 40, f"The cache of one layer before block {NOW} is made", size=16, bold=1)
    layout, per_frame, sinks = sampler().layout, tokens_per_frame(), model().sinks
    video = (layout.first_v * per_frame, 0, layout.step_v * per_frame)
    audio = (layout.first_a, sinks, layout.step_a)
    sites = (
        ("video_self", video, "video"),
        ("v2a", video, "video"),
        ("audio_self", audio, "audio"),
        ("a2v", audio, "audio"),
    )
    for i, (name, (first, pinned, step), kind) in enumerate(sites):
        _history(picture, name, kind, (first, pinned, step), 76 + i * 46)
    ring = sampler().past_blocks
    slot = (NOW - 1) % ring
    lines = (
        "Bars are as long as their tokens are many: every history has its own rate. One clock decides for all",
        f"four which block a slot holds. Block {NOW} goes to slot ({NOW} - 1) mod {ring} = {slot} (outlined).",
    )
    picture.lines(MARGIN, 278, lines)
    _table(picture, 350)
    return picture


def _history(picture: Drawing, name: str, kind: str, tokens: tuple[int, int, int], y: float) -> None:
    """Draw block 0, sinks and ring of one attention, to scale."""
    first, sinks, step = tokens
    ring, scale, x = sampler().past_blocks, 3.1, MARGIN + 100.0
    picture.text(MARGIN, y + 20, name, bold=1, fill=kind)
    picture.rect(x, y, first * scale, 30, f"{kind}", radius=2)
    if first * scale > 20:
        picture.text(x + first * scale / 2, y + 20, "0", anchor="middle", fill="paper", bold=1)
    x += first * scale + 2
    if sinks:
        picture.rect(x, y, sinks * scale, 30, "sink", radius=2)
        x += sinks * scale + 2
    for slot in range(ring):
        block = held(slot, NOW)
        picture.rect(x, y, step * scale - 2, 30, f"{kind}-pale", radius=2)
        if slot == (NOW - 1) % ring:
            picture.rect(x + 1, y + 1, step * scale - 4, 28, "none", stroke="now", thick=2.5, radius=2)
        picture.text(x + step * scale / 2, y + 20, str(block), anchor="middle")
        x += step * scale
    picture.text(x + 8, y + 20, f"{first + sinks + ring * step} tokens", size=12, fill="soft")


def _table(picture: Drawing, y: float) -> None:
    """Draw what each slot holds before each block: nothing is ever moved."""
    ring, cell, height = sampler().past_blocks, 62, 25
    picture.text(MARGIN, y, "What the slots hold", size=16, bold=1)
    x = MARGIN + 82
    heads = ("block 0", *(f"slot {slot}" for slot in range(ring)))
    for i, words in enumerate(heads):
        picture.text(x + i * cell + cell / 2 - 2, y + 28, words, size=12, anchor="middle", fill="soft")
    for k in range(1, ROWS + 1):
        top = y + 14 + k * height
        picture.text(MARGIN, top + 17, f"before {k}", size=12, fill="soft")
        for i in range(ring + 1):
            block = 0 if i == 0 else held(i - 1, k)
            fill = "faint" if block is None else "video" if i == 0 else COLOURS[(block - 1) // ring % len(COLOURS)]
            left = x + i * cell
            picture.rect(left, top, cell - 4, height - 3, fill, radius=3)
            if i == (k - 1) % ring + 1:
                picture.rect(left + 1, top + 1, cell - 6, height - 5, "none", stroke="now", thick=2, radius=3)
            words, shade = ("", "ink") if block is None else (str(block), "paper" if i == 0 else "ink")
            picture.text(left + cell / 2 - 2, top + 16, words, size=12, anchor="middle", fill=shade)
    _beside_the_table(picture, x + (ring + 1) * cell + 36, y)


def _beside_the_table(picture: Drawing, x: float, y: float) -> None:
    ring = sampler().past_blocks
    lines = (
        f"R = {ring} slots, window = R + 1 blocks.",
        "Block k >= 1 goes to slot (k - 1) mod R (outlined),",
        "on top of the oldest block, and only after its last",
        "denoise step: no step ever sees half a block.",
        "",
        "Nothing is moved and nothing is stored about who",
        "is where: one counter, blocks_done, says it all.",
        "",
        "Keys keep the rotation of their own second. Only",
        "differences of seconds matter, and within a window",
        "they never exceed those of training.",
    )
    picture.lines(x, y + 50, lines, 22)


def draw_reanchor() -> Drawing:
    """Draw how far away the pinned block 0 is, with and without moving along."""
    picture = Drawing(960, 360, "Distance of pinned keys over a stream, with and without moving along")
    start, blocks = sampler().layout.start_seconds, 16
    stays = [start(k) for k in range(1, blocks + 1)]
    moves = [start(k) - sampler().shift_seconds(k) for k in range(1, blocks + 1)]
    left, bottom, wide, high = MARGIN + 46, 300, 520, 220

    def at(k: int, seconds: float) -> tuple[float, float]:
        return left + wide * k / blocks, bottom - high * seconds / blocks

    picture.text(MARGIN, 40, "Seconds from the start of block k back to block 0's keys", size=16, bold=1)
    picture.line([at(0, 0), at(blocks, 0)], "soft")
    picture.line([at(0, 0), at(0, blocks)], "soft")
    for tick in range(0, blocks + 1, 4):
        picture.text(left - 10, at(0, tick)[1] + 4, str(tick), size=12, anchor="end", fill="soft")
        picture.text(at(tick, 0)[0], bottom + 20, str(tick), size=12, anchor="middle", fill="soft")
        picture.line([at(0, tick), at(blocks, tick)], "rule", dash="2 4")
    picture.text(left + wide / 2, bottom + 42, "block k", size=12, anchor="middle", fill="soft")
    picture.line([at(k, s) for k, s in enumerate(stays, 1)], "warn", thick=2.5, dash="6 5")
    picture.line([at(k, s) for k, s in enumerate(moves, 1)], "now", thick=3)
    _beside_the_chart(picture, left + wide + 36, max(moves))
    return picture


def _beside_the_chart(picture: Drawing, x: float, farthest: int) -> None:
    last = sampler().horizon_blocks - 1
    picture.text(x, 92, "reanchor off: they stay where they were", fill="warn", bold=1)
    picture.text(x, 112, "Their distance grows beyond anything trained.")
    picture.text(x, 158, "reanchor on: they move along", fill="now", bold=1)
    lines = (
        f"Training saw {sampler().horizon_seconds} s; its last block is {last}.",
        f"From there on block 0 stays {farthest} s behind, and",
        "the sinks keep their distance as well:",
        "d(k) = max(0, start of block k - start of",
        "the last block that training saw).",
        "Pinned keys are kept at their first position",
        "and rotated by d(k) before each block.",
    )
    picture.lines(x, 178, lines)
