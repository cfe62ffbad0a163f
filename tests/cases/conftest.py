"""Cases take the tiny checkpoints and the commands of the converters' tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "converters"))
