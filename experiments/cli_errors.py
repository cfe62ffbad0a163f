"""How a script answers: errors in one line, and figures into a file if one was asked for."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from omniforcing_jax.io.answers import DEBUG, refuse, unfailing_stderr
from omniforcing_jax.io.atomic_write import check_writable, write_json

# What people meet: bad input, a full disk, memory that runs out, a process that is lost. All else is a mistake of ours.
ANSWERED = (ValueError, OSError, MemoryError, RuntimeError)


@contextlib.contextmanager
def refusing(*outputs: Path | None) -> Iterator[None]:
    """Answer an error by one line on stderr and exit code 2, or by its traceback with `--debug`; Ctrl-C by code 130.

    Args:
        outputs: Files that will be written at the end; None was not asked for. One that cannot be written is refused at
            once. Nothing is made.

    Raises:
        SystemExit: With code 2, in place of an error; with code 130, in place of Ctrl-C.
    """
    with unfailing_stderr():
        try:
            for path in outputs:
                if path is not None:
                    check_writable(path)
            yield
        except ANSWERED as error:
            if DEBUG in sys.argv:
                raise
            sys.exit(refuse(error))
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


def keep_figures(path: Path | None, figures: Any) -> None:
    """Write figures as JSON, if a file was asked for; missing folders are made."""
    if path is not None:
        write_json(path, figures)


def report(path: Path | None, work: Callable[[], Any], tabulate: Callable[[Any], Iterable[str]]) -> None:
    """Compute figures, print them as lines, and keep them; errors as `refusing`."""
    with refusing(path):
        figures = work()
        print("\n".join(tabulate(figures)))
        keep_figures(path, figures)
