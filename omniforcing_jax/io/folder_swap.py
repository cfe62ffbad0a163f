"""Parts of a folder that appear all together or not at all: written in a stage inside it, then moved into place.

    folder/.new.<random>/    the stage
      lock                   held by whoever writes here; the system frees it when he dies
      new/                   what is written; each of its entries becomes an entry of the folder
      old/                   entries that were in the place of new ones, until all are exchanged
      moves.json             names of the entries, once they are being exchanged

A stage whose lock is free was left by a process that died. The next writer puts back what was being exchanged, so that
the folder is as it was before, and removes the stage. Stages of other processes and hosts stay.
"""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omniforcing_jax.io import lock
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.strict_json import as_texts, read_object, require

STAGE = ".new."
NEW, OLD, MOVES = "new", "old", "moves.json"
_NAME = re.compile(r"\.new\.[0-9a-f]{12}")


@contextlib.contextmanager
def swapping_in(folder: Path, last: Sequence[str] = (), unfinished: str | None = None) -> Iterator[Path]:
    """Context manager that moves what was written into a folder, replacing entries of the same name.

    An error inside leaves the folder as it was; one that did not exist is not made.

    Args:
        folder: Where the entries go; made if absent. Only one process may do this at a time.
        last: Entries that come last, in this order: those by which a reader knows that the folder is whole.
        unfinished: Content of the last entry while the others are exchanged; None leaves the old one until then.

    Yields:
        An empty folder to write into.

    Raises:
        lock.TakenError: Another process writes to the folder.
    """
    with _made(folder), lock.held(folder / lock.NAME, str(folder)):
        with staging(folder) as stage:
            yield stage
            names = sorted(path.name for path in stage.iterdir())
            ordered = [*(name for name in names if name not in last), *(name for name in last if name in names)]
            _sync(stage)
            _exchange(folder, stage.parent, ordered, unfinished)
        _sync(folder, deep=False)


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside `folder`, which is made if absent. What is left in it at the end is removed.

    What processes that died have left in `folder` is cleared away first, see `recover`.
    """
    with _made(folder):
        recover(folder)
        stage, number = _begin(folder)
        try:
            (stage / NEW).mkdir()
            yield stage / NEW
        finally:
            _put_back(folder, stage)
            shutil.rmtree(stage, ignore_errors=True)
            os.close(number)


def recover(folder: Path) -> None:
    """Clear away what processes that died have left: their stages go, and what they were exchanging is put back."""
    for stage in find_stages(folder):
        try:
            number = lock.take(stage / "lock")
        except OSError:  # no locks here, or removed just now
            continue
        if number is None:
            continue
        try:
            _put_back(folder, stage)
            shutil.rmtree(stage, ignore_errors=True)
        finally:
            os.close(number)  # after an error too, so that the next try does not take this one for another process


def find_stages(folder: Path) -> list[Path]:
    """List the stages in a folder, of processes that write to it and of those that died."""
    return [path for path in folder.glob(f"{STAGE}*") if _NAME.fullmatch(path.name)]


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing but stages and locks."""
    return all(path.name.startswith(STAGE) or path.name == lock.NAME for path in folder.iterdir())


def require_space(folder: Path, nbytes: int) -> None:
    """Check that there is room before anything is written.

    Raises:
        ValueError: The file system has fewer bytes free than needed; names the folder.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise ValueError(f"{folder}: no space left: needs {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; remove those again that are empty at the end."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _begin(folder: Path) -> tuple[Path, int]:
    """Make a stage and lock it; returns it and the lock's descriptor. One that is cleared away meanwhile is left."""
    while True:
        stage = folder / f"{STAGE}{uuid.uuid4().hex[:12]}"
        stage.mkdir()
        with contextlib.suppress(FileNotFoundError):
            if (number := lock.take(stage / "lock", or_without=True)) is not None:
                return stage, number


def _exchange(folder: Path, stage: Path, names: Sequence[str], unfinished: str | None) -> None:
    """Move new entries into place and old ones out of it; the move of the last new one makes the change final."""
    if not names:
        return
    (stage / OLD).mkdir()
    write_json(stage / MOVES, {"names": list(names), "unfinished": unfinished})
    if unfinished is not None:
        (stage / "unfinished").write_text(unfinished)
        if os.path.lexists(folder / names[-1]):
            shutil.copyfile(folder / names[-1], stage / OLD / names[-1])
        os.replace(stage / "unfinished", folder / names[-1])
    for name in names:
        if unfinished is None or name != names[-1]:
            _move_out(folder, stage, name)
        os.replace(stage / NEW / name, folder / name)


def _move_out(folder: Path, stage: Path, name: str) -> None:
    if os.path.lexists(folder / name):
        os.rename(folder / name, stage / OLD / name)


def _put_back(folder: Path, stage: Path) -> None:
    """Undo an exchange that was begun and not finished. It may be cut off itself and be done once more.

    A new entry that is not in the stage is in its place. An old one in the stage was moved out. The exchange is
    finished if the last new entry is in its place.
    """
    if not (stage / MOVES).is_file():
        return
    moves = read_object(stage / MOVES)
    names = _entries(moves, str(stage / MOVES))
    names = names if os.path.lexists(stage / NEW / names[-1]) else ()
    for name in names:
        if not os.path.lexists(stage / NEW / name):
            os.rename(folder / name, stage / NEW / name)
        if os.path.lexists(stage / OLD / name):
            os.replace(stage / OLD / name, folder / name)
    if names and _is_text(folder / names[-1], moves.get("unfinished")):
        (folder / names[-1]).unlink()
    (stage / MOVES).unlink()  # so that nobody else does it, too


def _entries(moves: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return the names of what is exchanged; entries of the folder and of nothing beyond it."""
    names = as_texts(moves.get("names"), f"{where}: names")
    for name in names or ("",):
        require(name not in ("", ".", "..") and Path(name).name == name, f"{where}: names", name, "must be an entry")
    return names


def _is_text(path: Path, text: str | None) -> bool:
    return text is not None and path.is_file() and path.read_bytes() == text.encode()


def _sync(folder: Path, *, deep: bool = True) -> None:
    """Bring files and names to the disk, so that a power cut does not leave names of files without content."""
    paths = [folder, *(path for path in folder.rglob("*") if deep)]
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
