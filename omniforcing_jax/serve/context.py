"""What all requests share: the engine, the limits, uploads and the door. One instance belongs to an application."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable

from omniforcing_jax.serve.door import Door
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.session import Viewer
from omniforcing_jax.serve.uploads import Uploads


class Bell:
    """Sets events of a loop from other threads. All that are due at a time cost one call into the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._due, self._lock = loop, set[asyncio.Event](), threading.Lock()

    def ring(self, event: asyncio.Event) -> None:
        """Set an event soon."""
        with self._lock:
            is_first = not self._due
            self._due.add(event)
        if is_first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        with self._lock:
            due, self._due = self._due, set()
        for event in due:
            event.set()


@dataclasses.dataclass
class HlsViewer:
    """A viewer that asks for segments one by one; it is gone when it has not asked for some time."""

    viewer: Viewer
    session: str
    seen: float


@dataclasses.dataclass
class ServerContext:
    """What all requests share.

    Attributes:
        engine: Sessions and blocks.
        limits: Bounds of what clients may ask for.
        uploads: Files that were taken.
        door: Who may come in.
        version: Version of the package.
        hls: Viewers by session and client.
        bells: What wakes the viewers of each loop.
    """

    engine: Engine
    limits: Limits
    uploads: Uploads
    door: Door = dataclasses.field(default_factory=Door)
    version: str = ""
    hls: dict[tuple[str, str], HlsViewer] = dataclasses.field(default_factory=dict)
    bells: dict[asyncio.AbstractEventLoop, Bell] = dataclasses.field(default_factory=dict)

    def waker(self) -> tuple[asyncio.Event, Callable[[], None]]:
        """Return an event of this thread's loop, and a function that sets it from any thread."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        bell = self.bells.setdefault(loop, Bell(loop))
        return event, lambda: bell.ring(event)
