"""The command `serve`: from flags to a running server."""

import contextlib
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable

from omniforcing_jax.cli.options import ServeOptions
from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.door import LOOPBACK, Door
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.mock import MockStudio
from omniforcing_jax.serve.server import JsonLines, listen, run_server
from omniforcing_jax.serve.stored import Store
from omniforcing_jax.serve.studio import Studio
from omniforcing_jax.serve.uploads import Uploads
from omniforcing_jax.strict_json import require

TOKEN = "OMNIFORCING_TOKEN"
SHORTEST_TOKEN = 8  # characters
MOST_GB = 1_000_000


def prepare_serve(command: ServeOptions, stack: contextlib.ExitStack, version: str) -> Callable[[], int]:
    """Check the request and listen. What comes back serves until a signal comes.

    Args:
        command: The flags.
        stack: Closes the socket and what shows loading and compiling.
        version: Version of the package.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    token = check_token(command)
    engine = open_engine(command, stack)
    listener = stack.enter_context(contextlib.closing(listen(command.host, command.port)))
    app = make_app(open_context(engine, command, token, version))
    if command.log_json:
        _log_json()

    def work() -> int:
        engine.start()
        print(f"watch at {address_of(command.host, listener, token)}", file=sys.stderr, flush=True)
        caught = run_server(app, engine, listener)
        engine.stop()
        return 0 if caught is None else 128 + caught

    return work


def open_engine(command: ServeOptions, stack: contextlib.ExitStack, prefix: str = "") -> Engine:
    """Return an engine that is not started yet.

    Args:
        command: The flags.
        stack: Closes what shows loading and compiling.
        prefix: What the names of its streams begin with.

    Raises:
        ValueError: In one line, whatever is wrong with the flags.
    """
    limits = Limits(
        ahead_s=command.ahead,
        max_sessions=command.max_sessions,
        seats=command.seats,
        per_client=command.per_client,
        idle_s=command.idle,
        state_bytes=_bytes_of(command.state_gb),
        save_every=command.save_every,
    )
    studio = _open_studio(command, stack)
    rule = f"must be at least two blocks, {2 * studio.block_s:g} s, so that one is played while the next is made"
    require(command.ahead >= 2 * studio.block_s, "ahead", command.ahead, rule)
    return Engine(studio, limits, Store(command.state), prefix=prefix)


def open_context(engine: Engine, command: ServeOptions, token: str | None, version: str) -> ServerContext:
    """Return what all requests to an engine share."""
    door = Door(token, _hosts(command), engine.limits.requests_per_s)
    return ServerContext(engine, engine.limits, Uploads(engine.prefix), door, version)


def check_token(command: ServeOptions) -> str | None:
    """Return the token of a server.

    Raises:
        ValueError: There is none, though others can reach the server; or it is too short.
    """
    token = command.token or os.environ.get(TOKEN) or None
    rule = f"others can reach this address: give --token or set {TOKEN}"
    require(is_loopback(command.host) or token is not None, "host", command.host, rule)
    if token is not None:
        fits = len(token) >= SHORTEST_TOKEN and token.isascii() and token.isalnum()
        require(fits, "token", "...", f"must be at least {SHORTEST_TOKEN} letters and digits")
    return token


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(host: str, listener: socket.socket, token: str | None) -> str:
    """Return the address of the page."""
    shown = host if host not in ("0.0.0.0", "::") else "localhost"
    shown = f"[{shown}]" if ":" in shown else shown
    query = "" if token is None else f"/?token={token}"
    return f"http://{shown}:{listener.getsockname()[1]}{query}"


def _hosts(command: ServeOptions) -> tuple[str, ...]:
    host = f"[{command.host}]" if ":" in command.host else command.host.lower()
    return (*LOOPBACK, host, *(name.lower() for name in command.allow_host))


def _bytes_of(gigabytes: float) -> int:
    require(0 < gigabytes <= MOST_GB, "state-gb", gigabytes, f"must be above 0 and at most {MOST_GB}")
    return int(1e9 * gigabytes)


def _open_studio(command: ServeOptions, stack: contextlib.ExitStack) -> Studio:
    if command.mock:
        require(command.mesh == ServeOptions.mesh, "mesh", command.mesh, "the mock server has no network")
        require(not command.lora, "lora", command.lora, "the mock server has no network")
        return MockStudio(has_camera=True)
    from omniforcing_jax.io import machine
    from omniforcing_jax.io.startup import Startup
    from omniforcing_jax.parallel.mesh import MeshConfig
    from omniforcing_jax.serve.network import NetworkStudio

    mesh = MeshConfig.parse(command.mesh)
    machine.use_compilation_cache()
    machine.use_one_heap()
    machine.check_backend()
    startup = stack.enter_context(Startup("serve"))
    return NetworkStudio(command.weights, command.dtype, startup, mesh, command.cache_dtype, command.lora)


def _log_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
