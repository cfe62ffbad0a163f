"""Write a file beside its place, then rename it into place; refuse outputs that cannot be written."""

import json
import os
from pathlib import Path
from typing import Any

AnyPath = str | os.PathLike[str]


def write_json(path: Path, values: Any) -> None:
    """Write a JSON value under a temporary name, then rename it into place; a NaN is an error, it is no JSON."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def check_writable(path: AnyPath) -> None:
    """Refuse an output that cannot be written, before any work is done for it.

    Raises:
        ValueError: naming the path, if it is a folder, if its folder is missing or if it cannot be opened for
            writing.
    """
    path = Path(path)
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    if not existed:
        path.unlink()
