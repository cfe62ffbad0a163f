"""The life of a block, and everything that one counter says."""

from experiments.docs.facts import sampler
from experiments.docs.svg import MARGIN, Drawing

LANES = (("network", 100), ("decoders", 166), ("host", 232))
LEFT, HIGH = MARGIN + 82, 40
PERIOD = 414  # pixels of a block


def draw() -> Drawing:
    """Draw two blocks of a stream, and the clock under them."""
    picture = Drawing(960, 566, "The life of a block and the block clock")
    picture.text(MARGIN, 40, "The life of a block (not to scale)", size=16, bold=1)
    for name, y in LANES:
        picture.text(MARGIN, y + 25, name, bold=1, fill="soft")
        picture.line([(LEFT, y + HIGH + 12), (960 - MARGIN, y + HIGH + 12)], "rule")
    for i, k in enumerate(("k", "k + 1")):
        _block(picture, k, LEFT + i * PERIOD)
    lines = (
        "Decoding is dispatched before the clean pass, and the chunk is handed out while the commit still runs.",
        "The host waits for picture and sound only. Nothing is compiled after the second block.",
    )
    picture.lines(MARGIN, 318, lines)
    _clock(picture, 392)
    return picture


def _block(picture: Drawing, k: str, x: float) -> None:
    """Draw one block's work in the three lanes."""
    network, decoders, host = (y for _, y in LANES)
    steps = sampler().steps
    picture.text(x + 4, 84, f"block {k}", size=12, fill="soft", bold=1)
    _box(picture, x + 4, network, 206, "now-pale", f"denoise, {steps} steps", "read the cache, write nothing")
    _box(picture, x + 216, network, 190, "now", "clean pass, commit", "write one slot", "paper")
    _box(picture, x + 216, decoders, 92, "video-pale", "picture", "video VAE")
    _box(picture, x + 312, decoders, 94, "audio-pale", "sound", "VAE, vocoder")
    _box(picture, x + 4, host, 92, "faint", "positions", "of the block")
    _box(picture, x + 312, host, 94, "faint", "chunk", f"of block {k}")
    middle = decoders + HIGH / 2
    picture.line([(x + 190, network + HIGH + 2), (x + 190, middle), (x + 213, middle)], "soft", arrow=1)
    picture.line([(x + 359, decoders + HIGH + 2), (x + 359, host - 2)], "soft", arrow=1)
    picture.line([(x + 50, host - 2), (x + 50, network + HIGH + 2)], "soft", arrow=1)


def _box(
    picture: Drawing, x: float, y: float, width: float, fill: str, first: str, second: str, ink: str = "ink"
) -> None:
    picture.rect(x, y, width, HIGH, fill, radius=4)
    picture.text(x + width / 2, y + 17, first, size=12.5, anchor="middle", bold=1, fill=ink)
    picture.text(x + width / 2, y + 32, second, size=11, anchor="middle", fill=ink)


def _clock(picture: Drawing, y: float) -> None:
    """Draw the counter and what follows from it."""
    picture.text(MARGIN, y, "The block clock: one counter, and all that follows from it", size=16, bold=1)
    picture.circle(MARGIN + 46, y + 82, 44, "now-pale", stroke="now", thick=2)
    picture.text(MARGIN + 46, y + 78, "blocks done", size=12, anchor="middle")
    picture.text(MARGIN + 46, y + 100, "k", size=20, anchor="middle", bold=1)
    layout, ring = sampler().layout, sampler().past_blocks
    facts = (
        ("latents", f"{layout.first_v} + {layout.first_a} if k = 0, else {layout.step_v} + {layout.step_a}"),
        ("seconds", "positions of video and audio, in float64 on the host"),
        ("slot", f"(k - 1) mod {ring}, where the commit writes"),
        ("readable slots", f"block 0, the sinks and min(k - 1, {ring}) blocks"),
        ("shift of pinned keys", "d(k), 0 within the trained horizon"),
        ("noise", "a key of (request, k, step, stream) and nothing else"),
    )
    for i, (name, words) in enumerate(facts):
        top = y + 34 + 21 * i
        picture.line([(MARGIN + 96, y + 82), (MARGIN + 118, top - 4)], "rule", thick=1.5)
        picture.text(MARGIN + 126, top, name, bold=1)
        picture.text(MARGIN + 296, top, words)
