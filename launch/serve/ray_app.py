"""Ray Serve: an engine per GPU, and a router that keeps every stream at its replica.

    pip install ".[ray]"
    serve run --app-dir launch/serve ray_app:build replicas=4 weights=weights/ltx2-student dtype=bfloat16
    serve run --app-dir launch/serve ray_app:build replicas=2 mock=true gpus=0    # to try it without GPUs

Every engine is a deployment of its own with one replica, so that Ray places it on a GPU and restarts it if it dies. The
names of its streams begin with its own letters; the router reads them and needs no table. A stream lives and dies with
its replica. With `state`, a folder that all machines share, the restarted replica offers its streams again.
"""

import asyncio
import contextlib
import json
import os
import string
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray import serve
from starlette.types import Receive, Scope, Send

import omniforcing_jax
from omniforcing_jax.cli.options import ServeOptions
from omniforcing_jax.cli.serve import open_context, open_engine
from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.door import Door
from omniforcing_jax.serve.guard import Guard
from omniforcing_jax.serve.server import ServerThread, listen

LETTERS = string.ascii_lowercase[1:]  # an engine's letters: "ab", "ac", ...
LOST = "the replica of this stream was lost, and the stream with it"
LARGEST_MESSAGE = 256_000_000  # bytes
PASSED = ("content-type", "authorization", "range", "accept")
KEPT = ("content-type", "content-disposition", "www-authenticate", "cache-control")


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, health_check_period_s=2, graceful_shutdown_timeout_s=60)
class EngineReplica:
    """One engine and its own small server.

    Args:
        index: Which engine it is.
        options: Flags of `omniforcing serve` by name.
    """

    def __init__(self, index: int, options: dict[str, Any]) -> None:
        own = {"state": Path(options["state"]) / str(index)} if options.get("state") else {}
        command = ServeOptions(**{**options, **own})
        self._stack = contextlib.ExitStack()
        self._engine = open_engine(command, self._stack, prefix_of(index))
        host = "127.0.0.1" if command.token is None else ray.util.get_node_ip_address()
        listener = self._stack.enter_context(contextlib.closing(listen(host, 0)))
        context = open_context(self._engine, command, command.token, omniforcing_jax.__version__)
        context.door.hosts = ()  # only the router comes here
        self._address = f"http://{host}:{listener.getsockname()[1]}"
        self._engine.start()
        self._server = ServerThread(make_app(context), listener)

    def where(self) -> str:
        """Return the address of the engine's server."""
        return self._address

    def load(self) -> float:
        """Return how much it has to do: its load, a whole device for each stream that waits, a little for any other."""
        with self._engine.lock:
            return self._engine.load() + len(self._engine.queue()) + 0.001 * len(self._engine.sessions)

    def process(self) -> int:
        """Return the process that it runs in."""
        return os.getpid()

    def check_health(self) -> None:
        """Let Ray restart a replica whose engine is broken."""
        if not self._engine.is_alive():
            raise RuntimeError(self._engine.message)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._engine.drain()
            self._stack.close()


def prefix_of(index: int) -> str:
    """Return what the names of an engine's streams and uploads begin with."""
    return "a" + LETTERS[index]


def index_of(name: str) -> int:
    """Return the engine that a name belongs to; -1 if it is no engine's."""
    return LETTERS.find(name[1]) if len(name) > 2 and name[0] == "a" else -1


class Routes:
    """Finds the engine of a request and passes it on.

    Args:
        engines: A handle of each engine.
    """

    def __init__(self, engines: list[Any]) -> None:
        self._engines = engines
        self._session: aiohttp.ClientSession | None = None

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request from its engine, or say that the engine is lost."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=10))
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send)
            return
        body = await _read(receive)
        if scope["path"] == "/v1/streams" and scope["method"] == "GET":
            await _answer(send, 200, {"streams": await self._list(scope)})
            return
        index = await self._choose(scope, body)
        try:
            url = await self._address(index) + _target(scope)
            async with self._session.request(scope["method"], url, data=body, headers=_headers(scope)) as found:
                await _stream(found, send)
        except (OSError, aiohttp.ClientError, ray.exceptions.RayError, IndexError):
            await _answer(send, 503, {"error": LOST})

    async def _choose(self, scope: Scope, body: bytes) -> int:
        parts = scope["path"].split("/")
        if len(parts) > 3 and parts[1:3] == ["v1", "streams"]:
            return index_of(parts[3])
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            start = json.loads(body or b"{}").get("start")
            if isinstance(start, str):
                return index_of(start)
        return await self._least_loaded()

    async def _least_loaded(self) -> int:
        async def load(engine: Any) -> float:
            try:
                return await asyncio.wait_for(engine.load.remote(), 2.0)
            except (TimeoutError, ray.exceptions.RayError):
                return float("inf")

        loads = await asyncio.gather(*map(load, self._engines))
        return loads.index(min(loads))

    async def _address(self, index: int) -> str:
        if index < 0:
            raise IndexError("no engine has such names")
        return await asyncio.wait_for(self._engines[index].where.remote(), 5.0)

    async def _list(self, scope: Scope) -> list[Any]:
        found = []
        for index in range(len(self._engines)):
            with contextlib.suppress(OSError, TimeoutError, aiohttp.ClientError, ray.exceptions.RayError):
                url = await self._address(index) + _target(scope)
                async with self._session.get(url, headers=_headers(scope)) as answer:  # pyright: ignore
                    found += (await answer.json())["streams"]
        return found

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass messages on in both directions; whoever watches a lost engine is told."""
        await receive()
        await send({"type": "websocket.accept"})
        words = LOST
        with contextlib.suppress(OSError, TimeoutError, aiohttp.ClientError, ray.exceptions.RayError, IndexError):
            url = await self._address(await self._choose(scope, b"")) + _target(scope)
            assert self._session is not None, "opened by the caller"
            async with self._session.ws_connect(url, max_msg_size=LARGEST_MESSAGE, headers=_headers(scope)) as line:
                up = asyncio.create_task(_pass_up(receive, line))
                words = await _pass_down(line, send)
                up.cancel()
        with contextlib.suppress(Exception):
            if words:
                await send({"type": "websocket.send", "text": json.dumps({"type": "end", "message": words})})
            await send({"type": "websocket.close", "code": 1001})


async def _pass_up(receive: Receive, line: aiohttp.ClientWebSocketResponse) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        await line.send_str(message.get("text") or "")
    await line.close()


async def _pass_down(line: aiohttp.ClientWebSocketResponse, send: Send) -> str:
    """Pass messages on to the viewer; returns what to tell it at the end, nothing if the engine did so itself."""
    is_told = False
    async for message in line:
        if message.type == aiohttp.WSMsgType.TEXT:
            is_told = '"type":"end"' in message.data.replace(" ", "") or '"type":"error"' in message.data.replace(
                " ", ""
            )
            await send({"type": "websocket.send", "text": message.data})
        elif message.type == aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
    return "" if is_told else LOST


def _target(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return scope["path"] + (f"?{query}" if query else "")


def _headers(scope: Scope) -> dict[str, str]:
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    return {name: value for name, value in pairs if name in PASSED}


async def _read(receive: Receive) -> bytes:
    found, more = bytearray(), True
    while more:
        message = await receive()
        found += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(found)


async def _stream(found: aiohttp.ClientResponse, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in found.headers.items() if name.lower() in KEPT]
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    async for piece in found.content.iter_any():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, values: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(values).encode()})


async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of the router's process."""
    if scope["type"] in ("http", "websocket"):
        await serve.get_replica_context().servable_object.routes.pass_on(scope, receive, send)


def make_router() -> Guard:
    """Return the router's application. Tokens are checked by the engines, origins and rates here."""
    return Guard(pass_on, Door(hosts=()))


@serve.deployment(max_ongoing_requests=10_000)
@serve.ingress(make_router)
class Router:
    """The one door of all engines.

    Args:
        engines: A handle of each engine.
    """

    def __init__(self, *engines: Any) -> None:
        self.routes = Routes(list(engines))


def build(values: dict[str, str]) -> serve.Application:
    """Build the application.

    Args:
        values: `replicas`, `gpus` of each (1), and flags of `omniforcing serve`, as `name=value`.
    """
    options: dict[str, Any] = dict(values)
    count, gpus = int(options.pop("replicas", "1")), float(options.pop("gpus", "1"))
    options["mock"] = str(options.get("mock", "false")).lower() == "true"
    options["token"] = options.get("token") or os.environ.get("OMNIFORCING_TOKEN") or None
    replicas = [
        EngineReplica.options(name=f"engine-{i}", ray_actor_options={"num_gpus": gpus, "num_cpus": 0}).bind(i, options)
        for i in range(count)
    ]
    return Router.options(ray_actor_options={"num_cpus": 0}).bind(*replicas)
