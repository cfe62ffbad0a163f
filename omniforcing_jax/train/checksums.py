"""Checksums of a checkpoint's files: written with them, compared before they are read.

A flipped bit in an array would be restored as another number without a word. Files are hashed side by side; Python's
lock is free meanwhile, so this is as fast as the disk on a machine with many cores.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omniforcing_jax.io.atomic_write import hash_file, write_json
from omniforcing_jax.strict_json import read_object

log = logging.getLogger(__name__)

NAME = "checksums.json"
NEEDED = ("state", "data")  # items of a checkpoint


def write(folder: Path) -> None:
    """Hash the files of all items, and write the hashes beside them. Orbax itself goes on with its own file there."""
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("*/**/*") if path.is_file())
    hashes = _hash_all(folder / name for name in names)
    write_json(folder / NAME, {"sha256": dict(zip(names, hashes, strict=True))})


def find_fault(folder: Path) -> str | None:
    """Compare a folder with its checksums; returns what is wrong in a few words, or None."""
    if missing := [name for name in NEEDED if not (folder / name).is_dir()]:
        return f"{' and '.join(missing)} missing"
    if not (folder / NAME).is_file():
        log.warning("%s: has no %s, so nothing tells whether it is damaged", folder, NAME)
        return None
    listed = _read(folder / NAME)
    if listed is None:
        return f"{NAME} cannot be read"
    if missing := [name for name in listed if not (folder / name).is_file()]:
        return f"{missing[0]} is missing"
    hashes = _hash_all(folder / name for name in listed)
    changed = [name for name, found in zip(listed, hashes, strict=True) if found != listed[name]]
    return f"{changed[0]} has changed since it was written" if changed else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        listed = read_object(path).get("sha256")
    except ValueError:
        return None
    return listed if isinstance(listed, dict) and listed else None


def _hash_all(paths: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(hash_file, paths))
