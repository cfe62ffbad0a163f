"""Bytes written and their rate: a bar on a terminal, elsewhere a line every few seconds."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from omniforcing_jax.io.progress import LINE_EVERY_S, is_terminal, say


class ByteProgress:
    """Counts bytes towards a total while it is open, as a context manager. A call adds some."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self._begin = self._last = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True)) if is_terminal() else None
        self._task = self._bar.add_task(what, total=total) if self._bar else None

    def __call__(self, nbytes: int) -> None:
        """Add bytes that were written."""
        self.done += nbytes
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._last > LINE_EVERY_S:
            self._last = time.monotonic()
            say(f"{self.what}: {self}")

    def __str__(self) -> str:
        """Return bytes, seconds and rate."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        done, total = self.done / 1e9, self.total / 1e9
        return f"{done:.2f} of {total:.2f} GB in {seconds:.1f} s, {done / seconds:.2f} GB/s"

    def __enter__(self) -> "ByteProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
