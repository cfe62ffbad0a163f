"""The machine: cache of compiled programs, counts of compilations, memory in use and memory free.

Only entry points change settings (`use_compilation_cache`, `use_one_heap`, `trimmed`). All other functions only read.
"""

import ctypes
import dataclasses
import functools
import itertools
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

from omniforcing_jax.io.atomic_write import check_folder_writable

_COMPILED = "/jax/core/compile/backend_compile_duration"  # also fires when the program came from the disk cache
_FROM_DISK = "/jax/compilation_cache/cache_hits"
LOADED = "/omniforcing_jax/loaded_bytes"  # recorded with JAX's monitoring, for each tensor that reached its devices
_IMPORTED = time.monotonic()
CACHE_WANTED, CACHE_FOLDER = "jax_enable_compilation_cache", "jax_compilation_cache_dir"  # settings of JAX
KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0, "jax_persistent_cache_min_entry_size_bytes": -1}
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")  # of NVIDIA, AMD and TPUs
_M_ARENA_MAX = -8  # of glibc's malloc.h
_TRIM_EVERY = 100  # blocks

T = TypeVar("T")
log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Return this package's folder in the user's cache; None where the user has no home or may not write there."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omniforcing_jax"
        check_folder_writable(folder)
    except (RuntimeError, KeyError, OSError, ValueError) as error:  # no home, no passwd entry; no permission
        _warn_once(str(error))
        return None
    return folder


@functools.cache
def _warn_once(reason: str) -> None:
    log.warning("%s: each start compiles anew; set JAX_COMPILATION_CACHE_DIR to a folder that can be written", reason)


def use_compilation_cache() -> str | None:
    """Keep all compiled programs on disk, so that the next process starts faster.

    They go to the folder that JAX is set to (JAX_COMPILATION_CACHE_DIR), else to the user's cache folder. What JAX's
    own variables say about which programs are kept stays.

    Returns:
        The folder; None if there is none that can be written, which is said once.
    """
    is_wanted, chosen = (getattr(jax.config, name) for name in (CACHE_WANTED, CACHE_FOLDER))
    if not is_wanted:
        return None
    folder = _checked(chosen) if chosen else _own_cache()
    jax.config.update(CACHE_FOLDER, folder)
    for name, value in KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return folder


def _own_cache() -> str | None:
    folder = cache_folder()
    return None if folder is None else str(folder / "jax")


def _checked(folder: str) -> str | None:
    """Return a folder that programs can be written to; None if they cannot. An address is taken as it is."""
    if "://" in folder:
        return folder
    try:
        check_folder_writable(folder)
    except (OSError, ValueError) as error:
        _warn_once(str(error))
        return None
    return folder


def check_backend() -> None:
    """Start JAX's backend.

    Raises:
        ValueError: If it has none: JAX_PLATFORMS names one that is not installed or has no device; one line.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts that one of the asked backends was found
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).strip().partition("\n")[0] or "no such backend is installed"
        raise ValueError(
            f"JAX_PLATFORMS={asked}: {reason}; leave it unset or set it to cpu, or install the extra gpu or tpu"
        ) from None


def is_shared_by_processes() -> bool:
    """Whether another process could use this one's devices: accelerators are held by one, and a CPU by all."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    return not any(Path(device).exists() for device in ACCELERATORS)


def use_one_heap() -> None:
    """Make threads that start from now on share glibc's existing heaps. Without glibc, do nothing.

    By default most threads get their own heap, and each heap keeps the most memory that it ever held. Chance decides
    which thread runs which part of a block. The memory of a long stream would therefore grow for hundreds of blocks,
    although the bytes in use stay the same.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def trimmed(blocks: Iterable[T]) -> Iterator[T]:
    """Pass on the blocks of a long stream, and return free pages of glibc's heap to the system every 100 blocks.

    The heap keeps the most memory that its threads ever held at one moment. A long stream meets ever rarer moments, so
    without this its resident memory grows for hours (experiments/LOG.md).
    """
    trim, count = _of_glibc("malloc_trim"), itertools.count(1)

    def passed(block: T) -> T:
        if trim is not None and next(count) % _TRIM_EVERY == 0:
            trim(0)
        return block

    return map(passed, blocks)  # map keeps no reference to a block


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


@dataclasses.dataclass
class CompileCounter:
    """Counts programs since `start`: those that became ready, and how many of them the disk cache held.

    Attributes:
        ready: Programs that were compiled or read from the disk cache.
        from_disk: Programs that were read from the disk cache.
    """

    ready: int = 0
    from_disk: int = 0

    @classmethod
    def start(cls) -> "CompileCounter":
        """Start to count JAX's monitoring events, until `stop`."""
        counter = cls()
        jax.monitoring.register_event_duration_secs_listener(counter._on_duration)
        jax.monitoring.register_event_listener(counter._on_event)
        return counter

    def stop(self) -> None:
        """Stop counting."""
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    @property
    def compiled(self) -> int:
        """Number of programs that were really compiled."""
        return self.ready - self.from_disk

    def _on_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.ready += event == _COMPILED

    def _on_event(self, event: str, **kwargs: str | int) -> None:
        self.from_disk += event == _FROM_DISK


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or its peak on systems that tell only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_bytes() -> int:
    """Return the device memory in use, in bytes. A CPU keeps no such count: there it is the sum of live arrays."""
    stats = jax.local_devices()[0].memory_stats()
    return sum(x.nbytes for x in jax.live_arrays()) if stats is None else stats["bytes_in_use"]


def free_bytes() -> int | None:
    """Return the bytes that are free for weights and caches, on the device or for a CPU in RAM; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return free_ram()


def free_ram() -> int | None:
    """Return the bytes of RAM that the process may still take; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    (available,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit = _container_limit()
    return available if limit is None else min(available, limit)


def _container_limit() -> int | None:
    """Return the bytes that the process's control group (version 2) still allows; None without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(used)


def process_seconds() -> float:
    """Return the seconds since this process began, imports included; outside Linux, since this import."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of stat: ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began
