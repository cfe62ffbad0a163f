"""A client in Python: streams of a server as objects.

import omniforcing_jax as of

server = of.connect("http://127.0.0.1:8188")
stream = server.open("a red ball", seed=0)
stream.set_prompt("a green ball")
for event in stream.follow():
    print(event)
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omniforcing_jax.io import tcp
from omniforcing_jax.io.extras import need

LARGEST_MESSAGE = 256_000_000  # bytes of a fragment
TIMEOUT_S = 60.0
CLOSE_S = 1.0  # who hangs up does not read on until the server's last word


class RemoteError(Exception):
    """A server refuses a request.

    Args:
        status: Status of the HTTP answer.
        message: The server's words, in one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Event(NamedTuple):
    """A message of a stream: what it is, and the bytes of a header or a fragment."""

    values: dict[str, Any]
    data: bytes | None

    @property
    def kind(self) -> str:
        """One of header, fragment, receipt, stream, skipped, end and error."""
        return self.values["type"]


class RemoteServer:
    """A server that `omniforcing serve` runs.

    Args:
        url: Its address; `?token=...` is taken from there.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._token = next(iter(urllib.parse.parse_qs(parts.query).get("token", [])), None)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that let this client in."""
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; `body` is JSON, or bytes as they are. Returns the JSON of the answer.

        Raises:
            RemoteError: The server refuses; has its words.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        found = self._send(method, path, data)
        return json.loads(found) if found else None

    def read_text(self, path: str) -> str:
        """Return what an address has, as text; raises as `ask`."""
        return self._send("GET", path, None).decode()

    def _send(self, method: str, path: str, data: bytes | None) -> bytes:
        request = urllib.request.Request(self._base + path, data, self.headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            words = json.loads(error.read() or b"{}").get("error", error.reason)
            raise RemoteError(error.code, words) from None

    def about(self) -> dict[str, Any]:
        """Return what the server is and does."""
        return self.ask("GET", "/v1/server")

    def open(self, prompt: str, **options: Any) -> "RemoteStream":
        """Make a stream; options are those of `StreamRequestBody`, `start` also as a file's path."""
        start = options.get("start")
        if isinstance(start, Path):
            options["start"] = self.ask("POST", "/v1/uploads", start.read_bytes())["id"]
        return self.stream(self.ask("POST", "/v1/streams", {"prompt": prompt, **options})["id"])

    def stream(self, name: str) -> "RemoteStream":
        """Return a stream that is there already."""
        return RemoteStream(self, name)

    def socket_url(self, path: str) -> str:
        """Return the address of a WebSocket."""
        return self._base.replace("http", "ws", 1) + path


class RemoteStream:
    """A stream on a server.

    Args:
        server: The server.
        name: The stream's id.
    """

    def __init__(self, server: RemoteServer, name: str) -> None:
        self.server, self.id = server, name
        self._path = f"/v1/streams/{name}"

    def view(self) -> dict[str, Any]:
        """Return how far it is."""
        return self.server.ask("GET", self._path)

    def set_prompt(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Change the prompt; returns the first receipt. Options are those of `PromptBody`."""
        return self.server.ask("POST", f"{self._path}/prompt", {"prompt": prompt, **options})

    def set_camera(self, camera: str | None) -> dict[str, Any]:
        """Change the camera's keys; returns the first receipt. None lets the camera stand."""
        return self.server.ask("POST", f"{self._path}/camera", {"camera": camera})

    def command(self, name: str) -> Any:
        """Do one of pause, resume, fork and save."""
        return self.server.ask("POST", f"{self._path}/{name}")

    def delete(self) -> None:
        """End it and forget it."""
        self.server.ask("DELETE", self._path)

    def follow(self, *, from_start: bool = False) -> Iterator[Event]:
        """Watch: yield events until the stream ends. It is made about as fast as it is watched in real time."""
        need("websockets", extra="serve")
        from websockets.sync.client import connect as open_socket

        url = self.server.socket_url(f"{self._path}/live{'?from=start' if from_start else ''}")
        options = {"max_size": LARGEST_MESSAGE, "close_timeout": CLOSE_S}
        options["ping_interval"] = None  # its answer would wait behind media: TCP notices who is gone
        with open_socket(url, additional_headers=self.server.headers, **options) as line:
            tcp.notice_loss(line.socket)
            for text in line:
                values = json.loads(text)
                data = line.recv() if "bytes" in values else None
                yield Event(values, data if isinstance(data, bytes) else None)


def connect(url: str) -> RemoteServer:
    """Return a server that `omniforcing serve` runs at an address, such as http://127.0.0.1:8188."""
    return RemoteServer(url)
