"""Every program that becomes ready, as it does: its name, the seconds, and whether the disk cache had it."""

import threading
from collections.abc import Callable

import jax

from experiments.gpu.sheet import Figures, markdown

READY = "/jax/core/compile/backend_compile_duration"  # also fires when the program came from the disk cache
FROM_DISK = "/jax/compilation_cache/cache_hits"  # fires before, in the same thread
COLUMNS = ("start", "program", "seconds", "from_disk")
LEAST_S = 0.3  # programs that take less are not named


class CompiledPrograms:
    """Context manager that calls `on_ready` with each program of some length: `program`, `seconds`, `from_disk`.

    Attributes:
        compiled: programs that the disk cache did not have, short ones too.
    """

    def __init__(self, on_ready: Callable[[Figures], None]):
        self._on_ready, self.compiled = on_ready, 0
        self._lock, self._thread = threading.Lock(), threading.local()

    def __enter__(self) -> "CompiledPrograms":
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    def _on_event(self, event: str, **kwargs: str | int) -> None:
        if event == FROM_DISK:
            self._thread.from_disk = True

    def _on_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event != READY:
            return
        from_disk, self._thread.from_disk = getattr(self._thread, "from_disk", False), False
        name = str(kwargs.get("fun_name", "?"))
        with self._lock:
            self.compiled += not from_disk
            if duration_secs >= LEAST_S:
                self._on_ready({"program": name, "seconds": round(duration_secs, 3), "from_disk": from_disk})


def table(figures: Figures) -> str:
    """Write the programs that took longest as a Markdown table; with several starts, each start's together."""
    rows = sorted(figures.get("compiled", []), key=lambda row: (row.get("start", 0), -row["seconds"]))
    return markdown(COLUMNS, rows)
