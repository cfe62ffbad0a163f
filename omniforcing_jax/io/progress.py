"""How far a command is: a live line on a terminal, plain lines every few seconds elsewhere, always on stderr.

`is_terminal` is the one place that decides between the two. Results go to stdout and never through here.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 5.0

T = TypeVar("T")


def is_terminal() -> bool:
    """Return whether somebody reads stderr on a terminal."""
    return Console(stderr=True).is_terminal


def say(line: str) -> None:
    """Print a plain line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


def words_for(seconds: int | float) -> str:
    """Spell a duration roughly: "3 s", "2 min", "1.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Bar:
    """A count towards a total: a bar on a terminal, a line every five seconds elsewhere. A context manager.

    Args:
        name: What is counted for, such as "streaming".
        total: Where the count ends; None if that is unknown.
        unit: What is counted, such as "blocks".
    """

    def __init__(self, name: str, total: int | float | None, unit: str = "") -> None:
        self._name, self._total, self._unit = name, total, unit
        columns = (TextColumn(name), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not is_terminal())
        self._task = self._bar.add_task("", total=total)
        self._said = self._began = time.monotonic()

    def __call__(self, completed: int | float, note: str = "") -> None:
        """Take the count so far, and a few words to show with it."""
        of = "" if self._total is None else f"/{self._total:g}"
        text = ", ".join(part for part in (f"{completed:.4g}{of} {self._unit}".rstrip(), note) if part)
        self._bar.update(self._task, completed=completed, description=text)
        if self._bar.disable and time.monotonic() - self._said > LINE_EVERY_S:
            self._said = time.monotonic()
            say(f"{self._name}: {text}{self._left(completed)}")

    def over(self, values: Iterable[T]) -> Iterator[T]:
        """Pass values on and count them."""
        for done, value in enumerate(values, 1):
            yield value
            self(done)

    def _left(self, completed: int | float) -> str:
        if self._total is None or not 0 < completed < self._total:
            return ""
        return f", about {words_for((self._said - self._began) * (self._total / completed - 1))} left"

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class Ticker:
    """Shows a changing text while something blocks: live on a terminal, elsewhere as lines.

    The first line is printed after one second, later ones ever more rarely, at least every half minute. A wait of less
    than a second prints nothing.

    Args:
        text: Returns what to show now. It is called from another thread.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        live = Live(get_renderable=lambda: Text(text()), console=Console(stderr=True), transient=True)
        self._live = live if is_terminal() else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, daemon=True)

    def start(self) -> None:
        """Begin to show the text."""
        if self._live is not None:
            self._live.start()
        else:
            self._thread.start()

    def stop(self) -> None:
        """Stop; a live line is wiped away."""
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        elif self._thread.is_alive():
            self._thread.join()

    def _print_lines(self) -> None:
        wait = 1.0
        while not self._ended.wait(wait):
            say(self._text())
            wait = min(2 * wait + 3, 30.0)
