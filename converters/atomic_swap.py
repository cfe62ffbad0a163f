"""Folders that appear whole or not at all: written under another name beside their place, then swapped in."""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

STAGE = ".new."  # and the number of the process that writes there
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside `folder` to write into. What is left in it at the end is removed.

    `folder` itself is made if absent, and removed again if nothing was put into it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    stage = folder / f"{STAGE}{os.getpid()}"
    try:
        stage.mkdir()
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _sweep(folder: Path) -> None:
    """Remove the stages of processes that were killed."""
    for stage in folder.glob(f"{STAGE}*"):
        number = stage.name.removeprefix(STAGE).partition(".")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(stage, ignore_errors=True)
        except (ValueError, PermissionError):
            continue  # not a stage, or one of another user's process that still runs


def swap_in(new: Path, place: Path) -> None:
    """Put a written folder into its place. An old one disappears in the same moment, where the system can do that."""
    if not place.exists():
        os.replace(new, place)
        return
    if not _exchange(new, place):
        old = new.with_name(f"{new.name}.old")
        os.replace(place, old)
        os.replace(new, place)
        new = old
    shutil.rmtree(new)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names; False where the system or its file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(b))


def require_space(folder: Path, nbytes: int) -> None:
    """Check that there is room before anything is written.

    Raises:
        ValueError: The file system has fewer bytes free than needed; names the folder.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise ValueError(f"{folder}: no space left: needs {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
