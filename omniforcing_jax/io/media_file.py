"""Media files by PyAV, opened in one way: what is wrong with one is said in one line, now or while it is read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omniforcing_jax.io.atomic_write import AnyPath


@contextmanager
def opened(path: AnyPath) -> Iterator[Any]:
    """Open a file as PyAV's input container.

    Raises:
        ValueError: "cannot read PATH: ...", if it cannot be opened, or whatever libav refuses within the block.
    """
    import av  # PyAV is imported where it is used: the network runs where it is absent
    from av.error import FFmpegError

    try:
        with av.open(os.fspath(path)) as file:
            yield file
    except (OSError, FFmpegError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ValueError(f"cannot read {os.fspath(path)}: {reason}") from None
