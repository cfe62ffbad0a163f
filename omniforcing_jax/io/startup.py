"""What a command does before its first result: load weights, compile programs. Shows which, how far, how long.

How long is known from the last time on this machine. `startup.json` in the user's cache folder has one entry per
command, weights and shapes. A start that finds its programs in the disk cache is much shorter than one that compiles
them, so the two have entries of their own.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import jax

from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.io.progress import Ticker, words_for
from omniforcing_jax.strict_json import read_object

FILE = "startup.json"
KEPT = 200  # entries; the oldest are dropped
COMPILED, FROM_DISK = "compiled", "from disk"


class StartTimes(NamedTuple):
    """How long a start took: loading and compiling in seconds, and how many programs became ready."""

    load_s: float
    compile_s: float
    programs: int


class Startup:
    """Says that weights are being loaded or programs compiled, until the command is ready. A context manager.

    Args:
        command: Its name, the first part of the key under which its times are kept.
    """

    def __init__(self, command: str) -> None:
        self._key = command
        self._last: dict[str, StartTimes] = {}
        self._counter = machine.CompileCounter()
        self._what, self._total, self._loaded = "", 0, 0
        self._ticker: Ticker | None = None
        self._began = self._load_s = 0.0
        self._ready_before = 0  # small programs that loading needs are compiled before

    def __enter__(self) -> "Startup":
        self._counter = machine.CompileCounter.start()
        jax.monitoring.register_scalar_listener(self._on_scalar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(None)
        _collect_again()
        self._counter.stop()
        jax.monitoring.unregister_scalar_listener(self._on_scalar)

    def identify(self, *parts: object) -> None:
        """Complete the key by weights, sizes and types, and look up how long such a start took the last time."""
        self._key = " ".join([self._key, *map(str, parts), jax.devices()[0].device_kind])
        times = read_times()
        self._last = {kind: times[name] for kind in (COMPILED, FROM_DISK) if (name := self._name(kind)) in times}

    def loading(self, what: str, nbytes: int) -> None:
        """Begin to load `what`, which becomes so many bytes in memory."""
        self._end_loading()
        self._what, self._total, self._loaded = what, nbytes, 0
        self._show(self._loading_text)

    def compiling(self) -> None:
        """End loading and begin to compile."""
        self._end_loading()
        self._ready_before = self._counter.ready
        self._show(self._compiling_text)

    def ready(self) -> None:
        """End: everything is compiled. The times are kept for the next start. Later calls do nothing."""
        _collect_again()
        if self._ticker is None:
            return
        times = StartTimes(round(self._load_s, 2), round(self._elapsed, 2), self._programs)
        self._show(None)
        if times.programs:
            keep_times(self._name(self._kind), times)

    def _end_loading(self) -> None:
        self._load_s += 0.0 if self._ticker is None else self._elapsed

    def _show(self, text: Callable[[], str] | None) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        self._began = time.monotonic()
        self._ticker = None if text is None else Ticker(text)
        if self._ticker is not None:
            self._ticker.start()

    def _on_scalar(self, event: str, value: int | float, **kwargs: str | int) -> None:
        if event == machine.LOADED:
            self._loaded += int(value)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def _programs(self) -> int:
        return self._counter.ready - self._ready_before

    @property
    def _kind(self) -> str:
        """Where most programs of this start come from; until that shows, what the last start suggests."""
        if not self._counter.ready:
            return FROM_DISK if FROM_DISK in self._last else COMPILED
        return FROM_DISK if 2 * self._counter.from_disk > self._counter.ready else COMPILED

    def _name(self, kind: str) -> str:
        return f"{self._key}, {kind}"

    def _loading_text(self) -> str:
        last, total = self._last.get(self._kind), _megabytes(self._total)
        if self._loaded:
            left = _left(self._elapsed * (self._total / self._loaded - 1))
            return f"loading {self._what}: {_megabytes(self._loaded)} of {total} MB{left}"
        return f"loading {self._what}: {total} MB{'' if last is None else _left(last.load_s - self._elapsed)}"

    def _compiling_text(self) -> str:
        last, known = self._last.get(self._kind), next(iter(self._last.values()), None)
        of = f" of {known.programs}" if known is not None and self._programs <= known.programs else ""
        verb = "compiling programs" if self._kind == COMPILED else "loading compiled programs"
        text = f"{verb}: {self._programs}{of}"
        if last is not None:
            return text + _left(last.compile_s - self._elapsed) + " (as last time)"
        hint = "; the next start will be shorter" if self._kind == COMPILED else ""
        return f"{text} after {words_for(self._elapsed)}{hint}"


def _collect_again() -> None:
    """Let the collector work where the program had stopped it; what is there by now lives as long as the command."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f}"


def _left(seconds: int | float) -> str:
    return f", about {words_for(seconds)} left" if seconds > 0 else ", a moment left"


def read_times() -> dict[str, StartTimes]:
    """Read the times of earlier starts; empty without a cache folder, or if the file is damaged."""
    path = _times_path()
    try:
        entries = {} if path is None else read_object(path)
        return {name: StartTimes(float(load), float(rest), int(count)) for name, (load, rest, count) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def keep_times(name: str, times: StartTimes) -> None:
    """Write the times of a start. A cache that cannot be written is no reason to fail."""
    path = _times_path()
    if path is None:
        return
    entries = {other: kept for other, kept in read_times().items() if other != name}
    try:
        write_json(path, dict([*entries.items(), (name, times)][-KEPT:]))
    except OSError:
        return


def _times_path() -> Path | None:
    folder = machine.cache_folder()
    return None if folder is None else folder / FILE
