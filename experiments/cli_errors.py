"""How a script answers: bad input in one line, and figures into a file if one was asked for."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniforcing_jax.io.arguments import refuse
from omniforcing_jax.io.atomic_write import check_writable, write_json


@contextlib.contextmanager
def refusing(*outputs: Path | None) -> Iterator[None]:
    """Answer a ValueError by one line on stderr and exit code 2.

    Args:
        outputs: files that will be written at the end, whose folders are made; None was not asked for. One that
            cannot be written is refused at once.

    Raises:
        SystemExit: with code 2, in place of a ValueError.
    """
    try:
        for path in outputs:
            if path is not None:
                make_folder(path.parent)
                check_writable(path)
        yield
    except ValueError as error:
        sys.exit(refuse(error))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ValueError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}") from None


def keep_figures(path: Path | None, figures: Any) -> None:
    """Write figures as JSON, if a file was asked for."""
    if path is not None:
        write_json(path, figures)
