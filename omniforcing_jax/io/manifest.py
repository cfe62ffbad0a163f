"""The manifest of a weights folder: which files belong together, and how to tell that they are still the same.

    manifest.json   {"format": 1, "components": {NAME: {FILE: {"bytes": ..., "probe": ..., "sha256": ...}}}}

It is written last. A load compares size and probe of every file, which takes milliseconds: the probe is a hash of the
header and of samples from all over the file, so files of two conversions differ. `verify` compares all bytes.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omniforcing_jax.io.atomic_write import hash_file, write_json
from omniforcing_jax.strict_json import read_object

log = logging.getLogger(__name__)

NAME = "manifest.json"
FORMAT = 1
UNFINISHED = json.dumps({"format": FORMAT, "unfinished": True}) + "\n"
"""What the manifest says while components are exchanged."""

SAMPLES, SAMPLE_BYTES = 64, 4096
HEAD_BYTES = 1 << 20  # enough for the header of any component here

Files = dict[str, dict[str, Any]]


def describe(component: Path, names: Iterable[str] | None = None, hashes: Mapping[str, str] | None = None) -> Files:
    """Describe files of a component.

    Args:
        component: Its folder.
        names: Of the files; None for all.
        hashes: The sha256 of files whose bytes were hashed while they were written, by name; the others are read.
    """
    files: Files = {}
    for name in sorted(path.name for path in component.iterdir() if path.is_file()) if names is None else names:
        path, known = component / name, (hashes or {}).get(name)
        files[name] = {"bytes": path.stat().st_size, "probe": probe(path), "sha256": known or hash_file(path)}
    return files


def probe(path: Path) -> str:
    """Hash the beginning of a file and samples from all over it (sha256, hex)."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(HEAD_BYTES))
        for k in range(SAMPLES if size > HEAD_BYTES else 0):
            file.seek(HEAD_BYTES + max(0, size - HEAD_BYTES - SAMPLE_BYTES) * k // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def write(folder: Path, components: Mapping[str, Files]) -> None:
    """Write a manifest."""
    write_json(folder / NAME, {"format": FORMAT, "components": dict(components)})


def read(folder: Path) -> dict[str, Files] | None:
    """Read the files of every component; None if there is no manifest.

    Raises:
        ValueError: It is damaged, or says that components were being exchanged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    values = read_object(path)
    if values.get("unfinished"):
        raise ValueError(f"{folder}: a conversion into it is under way, or was interrupted: run it again")
    try:
        return {
            name: {file: {kind: entry[kind] for kind in ("bytes", "probe", "sha256")} for file, entry in files.items()}
            for name, files in values["components"].items()
        }
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{path}: damaged; convert again, or delete it to use the folder as it is") from None


def check(folder: Path, names: Iterable[str]) -> None:
    """Check that components of a folder are those of its manifest; reads samples of their files.

    A folder without a manifest and a component that it does not list get a line in the log.

    Raises:
        ValueError: A file is missing, or is another one; names it.
    """
    listed = read(folder)
    if listed is None:
        _say_once(f"{folder}: has no {NAME}, so nothing tells whether its parts belong together")
        return
    for name in names:
        if name not in listed:
            _say_once(f"{folder / name}: {NAME} does not list it; it was put there by hand")
        for file, entry in listed.get(name, {}).items():
            _check_file(folder / name / file, entry)


@functools.cache
def _say_once(line: str) -> None:
    log.warning("%s", line)


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    rule = f"convert again, or delete {NAME} to use the folder as it is"
    if not path.is_file():
        raise ValueError(f"{path}: missing, but {NAME} lists it; {rule}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"{path}: has {size} bytes, {NAME} says {entry['bytes']}; {rule}")
    if probe(path) != entry["probe"]:
        raise ValueError(f"{path}: is not the file that {NAME} lists; {rule}")


def verify(folder: Path) -> Iterator[str]:
    """Compare all bytes of a folder with its manifest; yields a line for each component.

    Raises:
        ValueError: There is no manifest, or a file is missing or another one; names it.
    """
    listed = read(folder)
    if listed is None:
        raise ValueError(f"{folder}: has no {NAME} to compare with")
    for name, files in listed.items():
        for file, entry in files.items():
            path = folder / name / file
            _check_file(path, entry)
            if (found := hash_file(path)) != entry["sha256"]:
                raise ValueError(f"{path}: damaged: its sha256 is {found}, {NAME} says {entry['sha256']}")
        yield f"{name}: {len(files)} files as {NAME} lists them"


def is_unfinished(folder: Path) -> bool:
    """Return whether components of a folder are being exchanged, or an exchange was interrupted."""
    path = folder / NAME
    return os.path.isfile(path) and path.read_bytes() == UNFINISHED.encode()
