"""What all requests share: the engine, the limits, uploads and the door. One instance belongs to an application."""

import asyncio
import dataclasses
from collections.abc import Callable

from omniforcing_jax.serve.door import Door
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.session import Viewer
from omniforcing_jax.serve.uploads import Uploads


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
    """

    engine: Engine
    limits: Limits
    uploads: Uploads
    door: Door = dataclasses.field(default_factory=Door)
    version: str = ""
    hls: dict[tuple[str, str], HlsViewer] = dataclasses.field(default_factory=dict)


def waker() -> tuple[asyncio.Event, Callable[[], None]]:
    """Return an event of this thread's loop, and a function that sets it from any thread."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    return event, wake
