"""Load an exported transformer with diffusers' own loader, strictly: the end of the walk.

python -m experiments.dry_run.stock student
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from experiments.cli_errors import refusing


def load(folder: Path) -> str:
    """Load the network; returns what was loaded in a few words.

    Raises:
        ValueError: If the loader misses a weight, or knows none of its name.
    """
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    options: dict[str, Any] = {"subfolder": "transformer", "output_loading_info": True}
    loaded: Any = LTX2VideoTransformer3DModel.from_pretrained(folder, **options)
    network, report = loaded
    if wrong := {what: sorted(names)[:3] for what, names in report.items() if names}:
        raise ValueError(f"{folder}: diffusers does not load it whole: {wrong}")
    return f"{type(network).__name__}, {sum(p.numel() for p in network.parameters())} parameters"


def main(folder: str) -> None:
    """Print what was loaded; say so where diffusers is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        print("diffusers is not installed: the exported student was not loaded (pip install diffusers torch)")
        return
    with refusing():
        print(f"{folder}: diffusers loads {load(Path(folder))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
