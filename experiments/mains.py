"""How the main of an experiment answers: bad input in one line, and figures into a file if one was asked for."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniforcing_jax.io.atomic_write import check_writable, write_json


@contextlib.contextmanager
def refusing(*outputs: Path | None) -> Iterator[None]:
    """Answer a ValueError by one line on stderr and exit code 2; outputs that cannot be written are one, at once.

    Args:
        outputs: Files that will be written at the end; None was not asked for.

    Raises:
        SystemExit: with code 2, in place of a ValueError.
    """
    try:
        for path in outputs:
            if path is not None:
                check_writable(path)
        yield
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def keep_figures(path: Path | None, figures: Any) -> None:
    """Write figures as JSON, if a file was asked for."""
    if path is not None:
        write_json(path, figures)
