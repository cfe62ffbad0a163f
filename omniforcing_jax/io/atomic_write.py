"""Outputs: checked before the work begins, written beside their place, then renamed into it.

A reader finds the old file or the new one, never half of one. A pipe, a device or a file that a process holds open
cannot be replaced by a rename. What is for it is written elsewhere and copied into it when it is complete. A link stays
a link; the file that it names is replaced.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

AnyPath = str | os.PathLike[str]

LINKS_FOLLOWED = 40  # as many as Linux follows
_OPEN_FILE = re.compile(r"/proc/(\d+)/(?:task/\d+/)?fd/(\d+)")
_REFUSED = ((stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a block device"))  # cannot be opened; holds a file system


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Context manager that replaces a file in one step, once its new content is complete.

    Missing parent folders are made. An error inside leaves the old file as it was and removes the new one.

    Args:
        path: The output.

    Yields:
        The path to write to: a temporary name in the same folder, or in the system's folder for temporary files where
        the output is a pipe, a device or held open by a process.
    """
    if _find_open_file(path) is not None or (os.path.exists(path) and not os.path.isfile(path)):
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder) / "output"
            yield new
            with new.open("rb") as content, _open_in_place(path) as place:
                shutil.copyfileobj(content, place)
        return
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")  # several hosts may write to one folder
    try:
        yield new
        os.replace(new, place)
    finally:
        new.unlink(missing_ok=True)


def _find_open_file(path: AnyPath) -> re.Match[str] | None:
    """Follow links up to a file that a process has open, such as /dev/stdout; None if the path is no such file."""
    name = os.path.abspath(path)
    for _ in range(LINKS_FOLLOWED):
        name = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        if found := _OPEN_FILE.fullmatch(name):
            return found
        if not os.path.islink(name):
            return None
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    return None


def _open_in_place(path: AnyPath) -> IO[bytes]:
    """Open a pipe, a device or an open file. One of this process goes on where it is, so that nothing is written over.

    Opened by name, a file that the shell redirected to would begin anew, and what is printed later would overwrite it.
    """
    found = _find_open_file(path)
    if found is not None and int(found[1]) == os.getpid():
        return open(os.dup(int(found[2])), "wb")
    return open(path, "wb")


def write_json(path: AnyPath, values: Any) -> None:
    """Write a JSON value in one step.

    Raises:
        ValueError: The value has a NaN or an infinity, which JSON cannot hold.
    """
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    with replacing(path) as new:
        new.write_text(text)


def hash_file(path: AnyPath) -> str:
    """Hash the bytes of a file (sha256, hex), so that a later reader can tell whether they are the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_parents(path: AnyPath) -> None:
    """Make the missing parent folders of an output that is written under its own name."""
    Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)


def check_writable(path: AnyPath) -> None:
    """Refuse an output that cannot be written, before any work is done for it. Nothing is made or changed.

    Raises:
        ValueError: The path is a folder, or no permission allows to write it or to make its parents; names the path.
    """
    place = Path(os.path.realpath(path))
    if os.path.isdir(place):
        raise ValueError(f"cannot write {path}: is a directory")
    if os.path.exists(path):
        for is_kind, kind in _REFUSED:
            if is_kind(os.stat(path).st_mode) and _find_open_file(path) is None:
                raise ValueError(f"cannot write {path}: is {kind}")
        if not os.access(path, os.W_OK):
            raise ValueError(f"cannot write {path}: permission denied")
        return
    _check_room_for(path, place.parent)
    try:
        _try_name(place)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None


def check_folder_writable(folder: AnyPath) -> None:
    """Refuse a folder that cannot be written into or made, before any work is done for it. Nothing is made.

    Raises:
        ValueError: The path is no folder, or no permission allows to write into it or to make it; names the path.
    """
    place = Path(os.path.realpath(folder))
    if os.path.lexists(place) and not place.is_dir():
        raise ValueError(f"cannot write {folder}: not a directory")
    _check_room_for(folder, place)


def _check_room_for(path: AnyPath, folder: Path) -> None:
    """Refuse if `folder`, or the nearest of its parents that exists, takes no new entries."""
    nearest = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise ValueError(f"cannot write {path}: {nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write {path}: permission denied in {nearest}")


def _try_name(place: Path) -> None:
    """Make and remove the file, where its folder exists: some names are refused only then, such as too long ones."""
    if place.parent.is_dir():
        with place.open("xb"):
            pass
        place.unlink()
