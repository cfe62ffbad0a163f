"""Draw the pictures of docs/architecture.md.

    python -m experiments.docs.draw_architecture          # writes docs/images/*.svg

All numbers come from the package and from the shipped student's configs. The files are the same on every machine.
"""

from experiments.docs import alignment, block_clock, masks, ring, self_forcing, sinks
from experiments.docs.facts import ROOT
from experiments.docs.svg import Drawing, save

FOLDER = ROOT / "docs" / "images"
PICTURES = {
    "alignment": alignment.draw,
    "masks": masks.draw_masks,
    "regimes": masks.draw_regimes,
    "sinks": sinks.draw,
    "ring": ring.draw_ring,
    "reanchor": ring.draw_reanchor,
    "block_clock": block_clock.draw,
    "self_forcing": self_forcing.draw,
}


def draw_all() -> dict[str, Drawing]:
    """Draw every picture, by its file's name."""
    return {name: draw() for name, draw in PICTURES.items()}


def main() -> None:
    """Draw and write."""
    save(draw_all(), FOLDER)


if __name__ == "__main__":
    main()
