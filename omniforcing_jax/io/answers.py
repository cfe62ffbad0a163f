"""How a command ends: its exit code, one line for whatever went wrong, and no end for want of somebody who listens.

0 is success, 2 an error, 130 Ctrl-C, 143 SIGTERM. An error is one line on stderr; `--debug` shows where it came from.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from omniforcing_jax.io.plain_text import one_line

DEBUG = "--debug"
LONGEST = 600  # characters of a message; JAX lists every buffer where memory runs out
ENDING = (signal.SIGTERM, signal.SIGHUP)  # a scheduler or `docker stop`; a terminal that closes


class Stopped(BaseException):
    """A signal asked the program to end. Like KeyboardInterrupt it passes handlers of errors."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of a command line; returns the rest, and whether it was there."""
    return [word for word in arguments if word != DEBUG], DEBUG in arguments


def answer(work: Callable[[], int], *, debug: bool) -> int:
    """Do the work of a command and return the exit code.

    Args:
        work: Returns its own exit code.
        debug: Let errors pass, so that Python shows where they come from.

    Raises:
        SystemExit: Of the work itself, after a help page.
    """
    with unfailing_stderr(), stopped_by_signals():
        try:
            code = work()
            _flush_stdout()
            return code
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Stopped as end:
            return end.exit_code
        except Exception as error:
            with contextlib.suppress(OSError):
                _flush_stdout()
            if debug:
                raise
            return refuse(error)


def refuse(error: Exception) -> int:
    """Print what is wrong as one line on stderr; returns the exit code of a bad request, 2."""
    print(f"error: {describe(error)}", file=sys.stderr)
    return 2


def describe(error: Exception) -> str:
    """Say in one line what an error is. What is no message for people says which kind it is, and how to see more."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(": ".join(str(part) for part in (error.filename, error.strerror) if part is not None))
    text = one_line(str(error))
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if isinstance(error, ValueError | OSError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} ({DEBUG} shows where)"


def _flush_stdout() -> None:
    """Bring results to whoever reads them. If nobody can, they are dropped, so that Python's own end does not fail.

    Raises:
        OSError: The reader of a pipe is gone, or the disk is full.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        _point_to_nothing(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from None


def _point_to_nothing(file: Any) -> None:
    """Let the descriptor of a file lead to /dev/null. What is in its buffers goes there too."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no file at all
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, file.fileno())
        os.close(nothing)


class _Unfailing:
    """A text file to which writing never fails: once it does, everything goes to /dev/null."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write as well as it goes."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush as well as it goes."""
        self._try(self._file.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (OSError, ValueError):  # no reader, no space, no terminal any more; closed
            _point_to_nothing(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Let the program go on if stderr is closed or full: progress is worth less than what is being made."""
    before = sys.stderr
    with contextlib.nullcontext(before) if before is not None else open(os.devnull, "w") as file:
        sys.stderr = _Unfailing(file)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            sys.stderr = before


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the signals that end a program into `Stopped`, so that half-written files are removed.

    A signal that somebody handles or ignores already (nohup) stays as it is. Python loses what is raised in a
    destructor or a callback. The signal is then sent once more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    before, sys.unraisablehook = sys.unraisablehook, _send_again(sys.unraisablehook)
    for number in taken:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _send_again(otherwise: Callable[[Any], object]) -> Callable[[Any], object]:
    def hook(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt | Stopped):
            otherwise(lost)
            return
        number = lost.exc_value.args[0] if isinstance(lost.exc_value, Stopped) else signal.SIGINT
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    return hook


@contextlib.contextmanager
def stop_noted() -> Iterator[list[int]]:
    """Note the first Ctrl-C, SIGTERM or SIGHUP without interrupting what is under way; a second one interrupts.

    Python raises its own interrupt wherever the program is, and loses it in a destructor or a callback.

    Yields:
        The numbers of the signals that came; `stop` takes it.
    """
    noted: list[int] = []
    numbers = [number for number in (signal.SIGINT, *ENDING) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        put_back()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        put_back()


def stop(noted: Sequence[int]) -> None:
    """End as the first noted signal asks; does nothing if there is none.

    Raises:
        KeyboardInterrupt: It was Ctrl-C.
        Stopped: It was another signal.
    """
    if noted:
        raise KeyboardInterrupt if noted[0] == signal.SIGINT else Stopped(noted[0])
