"""Open media files with PyAV. Every fault of a file becomes one line, when it is opened or while it is read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omniforcing_jax.io.atomic_write import AnyPath


@contextmanager
def open_media(path: AnyPath) -> Iterator[Any]:
    """Open a file as PyAV's input container.

    Raises:
        ValueError: "cannot read PATH: ...", if the file cannot be opened, or if libav fails within the block.
    """
    import av  # imported where it is used: the network runs without PyAV
    from av.error import FFmpegError

    try:
        with av.open(os.fspath(path)) as file:
            yield file
    except (OSError, FFmpegError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ValueError(f"cannot read {os.fspath(path)}: {reason}") from None
