"""A viewer without a screen: it notes when fragments came, and reckons how a player would have fared with them."""

import asyncio
import dataclasses
import json
import math
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

CLOSE_S = 1.0  # a slow viewer does not read on until the server's last word
RECEIVE_BUFFER = 4096  # bytes, of a slow viewer's socket: the system would read ahead for it


class Arrival(NamedTuple):
    """A fragment that came: when, and which part of the stream it has, in seconds."""

    time: float
    start_s: float
    end_s: float


class Playback(NamedTuple):
    """How a player fared.

    Attributes:
        begins_s: Seconds from the first look until it could play.
        underruns: How often it had to wait after that.
        stalled_s: Seconds that it waited in all.
    """

    begins_s: float
    underruns: int
    stalled_s: float


def play(arrivals: Sequence[Arrival], began: float, buffer_s: float) -> Playback:
    """Reckon how a player fares that begins once it has some seconds, and waits whenever it has none.

    Args:
        arrivals: All fragments, in order.
        began: When it first looked.
        buffer_s: Seconds that it gathers before it plays.
    """
    origin = arrivals[0].start_s
    first = next((each for each in arrivals if each.end_s - origin >= buffer_s), arrivals[-1])
    shift, underruns, stalled_s = first.time - origin, 0, 0.0
    for each in arrivals[arrivals.index(first) + 1 :]:
        late_s = each.time - (each.start_s + shift)
        if late_s > 0:
            underruns, stalled_s, shift = underruns + 1, stalled_s + late_s, shift + late_s
    return Playback(first.time - began, underruns, stalled_s)


@dataclasses.dataclass
class SimulatedViewer:
    """Follows a stream over a real socket.

    Args:
        url: Address of the WebSocket.
        bytes_per_s: How fast it reads; None reads at once.

    Attributes:
        began: When it was made.
        arrivals: Fragments that came.
        receipts: Receipts that came, each with when.
        skipped: Fragments that the server left out.
        view: The last view of the stream.
        lost: Why the server hung up before the time was over; empty if it did not.
    """

    url: str
    bytes_per_s: float | None = None
    began: float = dataclasses.field(default_factory=time.perf_counter)
    arrivals: list[Arrival] = dataclasses.field(default_factory=list)
    receipts: list[tuple[float, dict[str, Any]]] = dataclasses.field(default_factory=list)
    skipped: int = 0
    view: dict[str, Any] = dataclasses.field(default_factory=dict)
    lost: str = ""

    async def watch(self, seconds: float, enough_s: float = math.inf) -> None:
        """Watch for some time, or until so many seconds of stream have come."""
        parts = urlsplit(self.url)
        own = None
        if self.bytes_per_s is not None:
            own = socket.socket()
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            own.setblocking(False)
            await asyncio.get_running_loop().sock_connect(own, (parts.hostname, parts.port))
        options = {"max_size": None, "max_queue": 1, "ping_interval": None, "close_timeout": CLOSE_S}
        async with connect(self.url, sock=own, compression=None, **options) as line:
            try:
                async with asyncio.timeout(seconds):
                    while not self.arrivals or self.arrivals[-1].end_s - self.arrivals[0].start_s < enough_s:
                        await self._take(line)
            except TimeoutError:
                return
            except ConnectionClosed as error:
                self.lost = str(error)

    async def _take(self, line: Any) -> None:
        values = json.loads(await line.recv())
        if "bytes" in values:
            data = await line.recv()
            if self.bytes_per_s is not None:
                await asyncio.sleep(len(data) / self.bytes_per_s)
        now = time.perf_counter()
        if values["type"] == "fragment":
            self.arrivals.append(Arrival(now, values["start_s"], values["end_s"]))
        elif values["type"] == "receipt":
            self.receipts.append((now, values["receipt"]))
        elif values["type"] == "skipped":
            self.skipped += values["fragments"]
        elif values["type"] == "stream":
            self.view = values["stream"]
