"""Where the weights lie that ship with the package: the small world chime, in half precision."""

from pathlib import Path

CHIME_WEIGHTS = Path(__file__).parent.parent / "assets" / "chime"
"""Folders `student`, `teacher` and the `codecs` that they share."""
