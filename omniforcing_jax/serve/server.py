"""The server as a process: uvicorn around the application, signals, logs."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from omniforcing_jax.io import tcp
from omniforcing_jax.serve.core import LOADING
from omniforcing_jax.serve.engine import Engine

MESSAGE_BYTES = 4096  # of what a WebSocket client says
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BACKLOG = 2048
GRACE_S = 5  # seconds that open connections have to end
log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """Log records as JSON, one per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        values = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            values["error"] = self.formatException(record.exc_info)
        return json.dumps(values)


class DrainingServer(uvicorn.Server):
    """A server that tells its viewers and saves its streams before it ends.

    Args:
        config: Settings of uvicorn.
        engine: What is drained.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self._is_draining = False
        self.caught: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals while the server runs. Unlike uvicorn's own, this does not raise them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one drains, the second one ends at once."""
        self.caught = sig
        if self._engine.stage == LOADING:
            os._exit(128 + sig)  # nothing is there to be saved, and a compilation cannot be interrupted
        if self._is_draining:
            self.force_exit = self.should_exit = True
            return
        self._is_draining = True
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        log.warning("draining: no new streams, running ones are saved")
        try:
            self._engine.drain()
        finally:
            self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes any that is free.

    Raises:
        ValueError: The address cannot be used; names it.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = infos[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.notice_loss(found)
        tcp.hold_little(found)
        found.bind(address)
        found.listen(BACKLOG)  # who comes before the application runs waits
    except OSError as error:
        raise ValueError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    return found


def run_server(app: ASGIApp, engine: Engine, listener: socket.socket) -> int | None:
    """Serve until a signal comes; returns its number."""
    server = DrainingServer(configure(app), engine)
    asyncio.run(server.serve([listener]))
    return server.caught


class UnhurriedSocket(WebSocketsSansIOProtocol):
    """A WebSocket that takes the next message once the one before has left the process.

    A slow viewer then has one fragment on its way, and not a queue of old ones.
    """

    def connection_made(self, transport: Any) -> None:
        """Take a connection. Its transport is asyncio's, or uvloop's under Ray, which has other base classes."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)


class ServerThread:
    """A server in a thread of this process, for programs that have a main loop of their own.

    Args:
        app: The application.
        listener: A socket that listens.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._server = uvicorn.Server(configure(app))
        work = self._server.serve([listener])
        self._thread = threading.Thread(target=asyncio.run, args=(work,), name="server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; open connections have a few seconds."""
        self._server.should_exit = True
        self._thread.join(2 * GRACE_S)


def configure(app: ASGIApp) -> uvicorn.Config:
    """Return uvicorn's settings for an application."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws=UnhurriedSocket,
        ws_max_size=MESSAGE_BYTES,
        ws_ping_interval=None,  # a slow viewer would answer late, behind its media; TCP notices who is gone
        ws_per_message_deflate=False,  # media are compressed already; each viewer would cost it again
        timeout_keep_alive=10,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=2000,
    )
