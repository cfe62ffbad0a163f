"""Who may ask at all: checks that come before any route, and headers that go with every answer.

Host      only names of this server: a foreign name that leads here is an attack (DNS rebinding)
Origin    only pages of this server may change anything or open a WebSocket
token     all but the page and the probes, where a token is set
rate      requests of one client that change something
"""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omniforcing_jax.serve.door import Door
from omniforcing_jax.serve.limits import RefusedError

OPEN = ("/", "/healthz", "/readyz", "/favicon.ico")
OPEN_BELOW = "/page/"
READS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: What is guarded.
        door: Has names, token and rates.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it in words."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except RefusedError as refusal:
            await _refuse(scope, receive, send, refusal)
            return
        await self._app(scope, receive, _with_headers(send))

    def _check(self, scope: Scope) -> None:
        headers, is_socket = Headers(scope=scope), scope["type"] == "websocket"
        host = headers.get("host", "")
        if self._door.hosts and _name_of(host) not in self._door.hosts:
            raise RefusedError(421, f"this server has not the name {_name_of(host)[:80]!r}; see --allow-host")
        changes = is_socket or scope["method"] not in READS
        origin = headers.get("origin")
        if changes and origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(403, "the request comes from a page of another server")
        if not self._is_open(scope) and not self._door.is_welcome(_token_of(scope, headers)):
            raise RefusedError(401, "a token is needed: open the page with ?token=... or send Authorization: Bearer")
        if changes and not is_socket:  # viewers are bounded by their number
            self._door.check_rate(client_of(scope))

    def _is_open(self, scope: Scope) -> bool:
        return scope["path"] in OPEN or scope["path"].startswith(OPEN_BELOW)


def client_of(scope: Scope) -> str:
    """Return the address that a request came from."""
    client = scope.get("client")
    return client[0] if client else "local"


def _name_of(host: str) -> str:
    """Return a Host header without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _token_of(scope: Scope, headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    return found[0] if found else None


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            message = {**message, "headers": headers.raw}
        await send(message)

    return wrapped


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: RefusedError) -> None:
    """Answer a request, or a WebSocket that was not accepted yet, by an error."""
    body = json.dumps({"error": refusal.message}).encode()
    prefix: Any = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 4000, "reason": refusal.message[:120]})
            return
        prefix = "websocket.http.response"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{prefix}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
