"""The machine underneath: compiled-program cache, compile counts, memory in use and memory free.

Only mains change settings (`use_compilation_cache`, `use_one_heap`, `trimmed`); everything else here just looks.
"""

import ctypes
import dataclasses
import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"  # also fires when the program came from the disk cache
_FROM_DISK = "/jax/compilation_cache/cache_hits"
_IMPORTED = time.monotonic()
_M_ARENA_MAX = -8  # of glibc's malloc.h
_TRIM_EVERY = 100  # blocks

T = TypeVar("T")


def use_compilation_cache() -> Path:
    """Keep compiled programs on disk, in the user's cache folder, however quickly they compile."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omniforcing_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def use_one_heap() -> None:
    """Let threads that begin from now on share the heaps that glibc has by now; where there is no glibc, do nothing.

    By default most threads get a heap of their own, and each heap keeps the most that it ever held. Which thread runs
    which part of a block is chance, so the memory of a long stream would grow for hundreds of blocks although the bytes
    in use stay the same.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def trimmed(blocks: Iterable[T]) -> Iterator[T]:
    """Pass on the blocks of a long stream, and now and then give the free pages of glibc's heap back to the system.

    The heap keeps the most that its threads ever held at one moment, and the longer a stream is the rarer are the
    moments in it: without this resident memory grows for hours (experiments/LOG.md).
    """
    trim, count = _of_glibc("malloc_trim"), itertools.count(1)

    def passed(block: T) -> T:
        if trim is not None and next(count) % _TRIM_EVERY == 0:
            trim(0)
        return block

    return map(passed, blocks)  # which holds no block itself


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


@dataclasses.dataclass
class CompileCounter:
    """Programs compiled since `start`, and those that came ready from the disk cache instead."""

    ready: int = 0
    from_disk: int = 0

    @classmethod
    def start(cls) -> "CompileCounter":
        """Begin to listen to jax's monitoring events; until `stop`."""
        counter = cls()
        jax.monitoring.register_event_duration_secs_listener(counter._on_duration)
        jax.monitoring.register_event_listener(counter._on_event)
        return counter

    def stop(self) -> None:
        """Listen no longer."""
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    @property
    def compiled(self) -> int:
        """Programs that the compiler made."""
        return self.ready - self.from_disk

    def _on_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.ready += event == _COMPILED

    def _on_event(self, event: str, **kwargs: str | int) -> None:
        self.from_disk += event == _FROM_DISK


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM (where the system does not say: its peak)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_bytes() -> int:
    """Return the device memory in use; on CPU, which keeps no such count, the sum of live arrays."""
    stats = jax.local_devices()[0].memory_stats()
    return sum(x.nbytes for x in jax.live_arrays()) if stats is None else stats["bytes_in_use"]


def free_bytes() -> int | None:
    """Return the memory that is free for weights and caches: the device's, or on CPU the machine's; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    (available,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit = _container_limit()
    return available if limit is None else min(available, limit)


def _container_limit() -> int | None:
    """Return what the process's control group (version 2) still allows, if it limits it."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(used)


def process_seconds() -> float:
    """Return the seconds since this process began, imports included (or, on other systems, since this import)."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of stat: ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began
