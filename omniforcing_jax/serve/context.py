"""What all requests share: the engine, the limits, uploads and the token. One instance belongs to an application."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable

from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits, RefusedError
from omniforcing_jax.serve.session import Viewer
from omniforcing_jax.serve.uploads import Uploads

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
BURST_S = 3.0  # seconds of requests that may come at once
CLIENTS = 10_000  # addresses that are remembered


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
        token: What clients must know; None lets everybody in.
        hosts: Names that requests may address the server by.
        hls: Viewers by session and client.
    """

    engine: Engine
    limits: Limits
    uploads: Uploads
    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    hls: dict[tuple[str, str], HlsViewer] = dataclasses.field(default_factory=dict)
    _rates: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def is_welcome(self, token: str | None) -> bool:
        """Return whether a client that shows this token may come in."""
        return self.token is None or (token is not None and secrets.compare_digest(token.encode(), self.token.encode()))

    def check_rate(self, client: str) -> None:
        """Count a request that changes something.

        Raises:
            RefusedError: The client has made too many.
        """
        rate, now = self.limits.requests_per_s, time.monotonic()
        if len(self._rates) > CLIENTS:
            self._rates.clear()
        left, before = self._rates.get(client, (rate * BURST_S, now))
        left = min(rate * BURST_S, left + (now - before) * rate)
        if left < 1:
            raise RefusedError(429, f"more than {rate:g} requests per second; try again in a moment")
        self._rates[client] = (left - 1, now)


def waker() -> tuple[asyncio.Event, Callable[[], None]]:
    """Return an event of this thread's loop, and a function that sets it from any thread."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    return event, wake
