"""The figures of one part: a JSON file that is whole after every row, and the time that the part has left.

A part may be killed at any moment, and a row may fail on a machine that nobody has seen. Neither may cost what was
measured before.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import write_json

LONGEST_ERROR, LONGEST_CELL = 500, 60  # characters

T = TypeVar("T")
Figures = dict[str, Any]

log = logging.getLogger(__name__)


class Sheet:
    """Figures that are written each time that there are new ones.

    Args:
        path: JSON file.
        minutes: that this process has, counted from its start; None is no bound.
        **head: figures to begin with.

    Attributes:
        figures: all of them; `complete` says whether the part came to its end.
    """

    def __init__(self, path: Path, minutes: float | None = None, **head: Any):
        self._path, self._seconds = path, math.inf if minutes is None else 60 * minutes
        self._last: dict[str, float] = {}
        self.figures: Figures = {**head, "complete": False}
        self.put()

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self._seconds - machine.process_seconds()

    def put(self, **figures: Any) -> None:
        """Set figures, and write all."""
        self.figures |= figures
        write_json(self._path, _finite(self.figures))

    def add(self, table: str, *rows: Figures) -> None:
        """Add rows to a table, and write all."""
        self.put(**{table: [*self.figures.get(table, []), *rows]})

    def measure(self, table: str, row: Figures, work: Callable[[], Figures | list[Figures]]) -> None:
        """Add what `work` returns to `row`: one row, or several that share it.

        Where it fails the row has an `error` instead. Where a row as long as the table's last one would not fit into
        the time that is left, `work` is not begun and the row says so in `skipped`. The first row is always begun.
        """
        begun = time.monotonic()
        if self.left_s < self._last.get(table, -math.inf):
            self.add(table, {**row, "skipped": f"{self.left_s:.0f} s were left"})
            return
        made = attempt(work)
        self.add(table, *({**row, **each} for each in (made if isinstance(made, list) else [made])))
        self._last[table] = time.monotonic() - begun

    def finish(self) -> Figures:
        """Say that the part came to its end; returns all figures."""
        self.put(complete=True)
        return self.figures


def attempt(work: Callable[[], T]) -> T | Figures:
    """Return the figures that `work` returns, or the text of its `error`, whatever that is."""
    try:
        return work()
    except Exception as error:
        log.exception("a row failed")
        return {"error": f"{type(error).__name__}: {error}"[:LONGEST_ERROR]}


def markdown(names: Sequence[str], rows: Iterable[Figures]) -> str:
    """Write rows as a Markdown table: their values of these names, or in the last column why there are none."""
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(markdown_row(names, row) for row in rows)])


def markdown_row(names: Sequence[str], row: Figures) -> str:
    """Write one row of a Markdown table."""
    cells = [_cell(row.get(name)) for name in names]
    if why := next((str(row[name]) for name in ("skipped", "refused", "error") if isinstance(row.get(name), str)), ""):
        cells[-1] = " ".join(why.split())[:LONGEST_CELL].replace("|", "/")
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """Put None in the place of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
