"""Locks on folders that several programs write to: held by an open file, so the system frees them when one dies.

A lock is known to all processes of a machine, whatever container they are in, and to other hosts where their shared
file system keeps locks (NFS 4, Lustre with flock). It says who holds it. On a file system without locks a line is
logged, and work goes on without one.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

NAME = ".omniforcing.lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_PAUSE_S = 0.1


class TakenError(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def held(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock as long as the block runs. Its file is made here and removed at the end.

    Args:
        path: The lock's file, in a folder that exists.
        what: What is locked, for the message.
        wait_s: How long to wait for another holder, in seconds.

    Raises:
        TakenError: Another process holds it; says which.
        OSError: The file cannot be made.
    """
    end = time.monotonic() + wait_s
    while (number := take(path, or_without=True)) is None:
        if time.monotonic() >= end:
            raise TakenError(f"{what} is in use by {_read_holder(path)}; wait for its end, or choose another folder")
        time.sleep(_PAUSE_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is free, so that nobody holds a file that has no name
        os.close(number)


def take(path: Path, *, or_without: bool = False) -> int | None:
    """Take a lock, if it is free; returns its descriptor, which holds it until it is closed, or None.

    Args:
        path: As in `held`.
        or_without: Go on without a lock where the file system has none.

    Raises:
        OSError: As `held`, or the file system has no locks.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(number, path, or_without)
        if os.path.exists(path) and os.path.samestat(os.fstat(number), os.stat(path)):
            os.ftruncate(number, 0)
            os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return number
    except FileNotFoundError:
        pass  # removed by its holder just now
    except OSError as error:
        if error.errno not in _TAKEN:
            os.close(number)
            raise
    os.close(number)
    return None


def _lock(number: int, path: Path, or_without: bool) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not or_without or error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: the file system has no locks; let no other program write here", path.parent)


def _read_holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace") or "another process"
    return "another process"
