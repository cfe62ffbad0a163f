"""Where chime's weights are: `codecs`, `teacher` and `student`, shipped with the package."""

from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "assets" / "chime"
