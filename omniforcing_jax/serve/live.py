"""Streams on their way out: the WebSocket of the page, a file that grows, and HLS. Each viewer is one task.

A viewer that reads slowly keeps nobody waiting but itself: `history.Cursor` leaves out what it has missed.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from omniforcing_jax.serve import requests, viewers
from omniforcing_jax.serve import session as states
from omniforcing_jax.serve.context import HlsViewer, ServerContext
from omniforcing_jax.serve.fragments import Fragmenter
from omniforcing_jax.serve.history import Taken
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.messages import PlayedMessage, Receipt
from omniforcing_jax.serve.session import Session, Viewer
from omniforcing_jax.strict_json import loads

NEWS_S = 1.0  # seconds between two views of a stream, if nothing happens
SHARED_S = 0.25  # seconds for which viewers share a view
HLS_GONE_S = 12.0  # seconds without a request after which a viewer is gone
HLS_SEGMENTS = 30  # in a playlist
HLS_WAIT_S = 5.0  # seconds that a playlist waits for its first segment
GOING_AWAY, REFUSED = 1001, 1008  # codes of WebSocket closings


@contextlib.asynccontextmanager
async def watching(context: ServerContext, session: Session, at_start: bool) -> AsyncIterator[tuple[Viewer, Any]]:
    """Be a viewer for as long as the block runs; yields the viewer and an event that is set when there is news."""
    event, wake = context.waker()
    viewer = viewers.join(context.engine, session, wake, at_start)
    try:
        yield viewer, event
    finally:
        viewers.leave(context.engine, session, viewer)


async def until_news(event: asyncio.Event, seconds: float = NEWS_S) -> None:
    """Wait for news, but not for long."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    event.clear()


def is_over(context: ServerContext, session: Session) -> bool:
    """Return whether nothing more will come."""
    return session.state in states.OVER or context.engine.is_drained


async def grow_file(context: ServerContext, session: Session, at_start: bool) -> AsyncIterator[bytes]:
    """Yield an MP4 file piece by piece, as it is made: its header, then fragments."""
    async with watching(context, session, at_start) as (viewer, event):
        has_header = False
        while True:
            if not has_header and session.fragmenter is not None:
                has_header = True
                yield session.fragmenter.init
            taken = viewers.take(context.engine, session, viewer) if has_header else Taken(None, 0)
            if taken.fragment is not None:
                yield taken.fragment.data
            elif is_over(context, session):
                return
            else:
                await until_news(event)


class Talk:
    """The server's side of one WebSocket.

    Args:
        socket: An accepted WebSocket.
        context: The server.
        session: What is watched.
    """

    def __init__(self, socket: WebSocket, context: ServerContext, session: Session) -> None:
        self._socket, self._context, self._session = socket, context, session
        self._turn = asyncio.Lock()  # two tasks send
        self._header: Fragmenter | None = None
        self._told: dict[str, Receipt] = {}
        self._version, self._news_at = -1, 0.0

    async def run(self, at_start: bool) -> None:
        """Talk until one side has had enough."""
        async with watching(self._context, self._session, at_start) as (viewer, event):
            reader = asyncio.create_task(self._read(viewer))
            writer = asyncio.create_task(self._write(viewer, event))
            try:
                await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reader, writer):
                    task.cancel()
                await asyncio.gather(reader, writer, return_exceptions=True)

    async def refuse(self, message: str) -> None:
        """Say what is wrong, and hang up."""
        await self._close(REFUSED, message)

    async def _read(self, viewer: Viewer) -> None:
        """Take what the viewer says of itself; anything else is refused in words, and then the line is closed."""
        while True:
            try:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                said = PlayedMessage.from_dict(loads(message.get("text") or "", "message"))
            except (ValueError, RuntimeError) as error:
                await self.refuse(str(error))
                return
            viewers.report(self._context.engine, self._session, viewer, said.second, said.playing)

    async def _write(self, viewer: Viewer, event: asyncio.Event) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._tell()
                taken = viewers.take(self._context.engine, self._session, viewer) if self._header else Taken(None, 0)
                if taken.skipped:
                    await self._say({"type": "skipped", "fragments": taken.skipped})
                if taken.fragment is not None:
                    await self._send(taken.fragment.envelope, taken.fragment.data)
                elif is_over(self._context, self._session):
                    await self._close(GOING_AWAY, self._session.message)
                    return
                else:
                    await until_news(event)

    async def _tell(self) -> None:
        """Send what is new of the stream, apart from its fragments."""
        session, now = self._session, time.monotonic()
        if session.fragmenter is not None and session.fragmenter is not self._header:
            self._header = session.fragmenter
            about = {"type": "header", "mime": self._header.mime, "bytes": len(self._header.init)}
            await self._send(json.dumps(about), self._header.init)
        if session.version == self._version and now - self._news_at < NEWS_S:
            return
        self._version, self._news_at = session.version, now
        told, self._told = self._told, {receipt.id: receipt for receipt in list(session.receipts)}
        for name, receipt in self._told.items():
            if told.get(name) != receipt:
                await self._say({"type": "receipt", "receipt": dataclasses.asdict(receipt)})
        await self._send(_view_message(self._context, session))

    async def _say(self, values: dict[str, Any]) -> None:
        await self._send(json.dumps(values))

    async def _send(self, text: str, data: bytes | None = None) -> None:
        """Send a message, and the bytes that belong to it right after."""
        async with self._turn:
            await self._socket.send_text(text)
            if data is not None:
                await self._socket.send_bytes(data)

    async def _close(self, code: int, message: str) -> None:
        async with self._turn:  # nothing comes between the last word and the end
            await self._socket.send_json({"type": "end" if code == GOING_AWAY else "error", "message": message})
            await self._socket.close(code, message.encode()[:120].decode(errors="ignore"))


def _view_message(context: ServerContext, session: Session) -> str:
    """Return the message with a stream's view. Viewers that ask at about the same time share one."""
    now, last = time.monotonic(), session.shown
    if last is None or last[0] != session.version or now - last[1] > SHARED_S:
        view = dataclasses.asdict(requests.view(context.engine, session))
        last = session.shown = (session.version, now, json.dumps({"type": "stream", "stream": view}))
    return last[2]


async def playlist(context: ServerContext, session: Session, client: str, query: str) -> str:
    """Return the HLS playlist of a stream as far as it is made.

    Raises:
        RefusedError: There is no segment yet.
    """
    follow_hls(context, session, client)
    event, _ = context.waker()
    deadline = time.monotonic() + HLS_WAIT_S
    while not (fragments := session.history.all()[-HLS_SEGMENTS:]):
        if time.monotonic() > deadline or is_over(context, session):
            raise RefusedError(503, f"the stream has no segment yet: {session.message or session.state}")
        await until_news(event, 0.1)
    longest = max(each.end_s - each.start_s for each in fragments)
    lines = [
        *("#EXTM3U", "#EXT-X-VERSION:7", f"#EXT-X-TARGETDURATION:{max(1, round(longest))}"),
        *(f"#EXT-X-MEDIA-SEQUENCE:{fragments[0].number}", "#EXT-X-INDEPENDENT-SEGMENTS"),
        f'#EXT-X-MAP:URI="header.mp4{query}"',
    ]
    for each in fragments:
        lines += [f"#EXTINF:{each.end_s - each.start_s:.6f},", f"segments/{each.number}.m4s{query}"]
    if is_over(context, session):
        lines.append("#EXT-X-ENDLIST")
    return "\n".join(lines) + "\n"


def follow_hls(context: ServerContext, session: Session, client: str) -> HlsViewer:
    """Note that an HLS player is there; it is a viewer from its first request on."""
    key = (session.id, client)
    found = context.hls.get(key)
    if found is None:
        viewer = viewers.join(context.engine, session, lambda: None, at_start=False)
        found = context.hls[key] = HlsViewer(viewer, session.id, 0.0)
    found.seen = time.monotonic()
    return found


def take_segment(context: ServerContext, session: Session, client: str, number: int) -> bytes:
    """Return a segment by its number.

    Raises:
        RefusedError: It is gone, or not made yet.
    """
    fragment, found = session.history.find(number), follow_hls(context, session, client)
    if fragment is None:
        raise RefusedError(404, f"segment {number} is gone, or not made yet")
    found.viewer.cursor.number = number
    viewers.take(context.engine, session, found.viewer)
    return fragment.data


async def forget_hls(context: ServerContext) -> None:
    """Let HLS players go that have not asked for some time; runs for ever."""
    while True:
        await asyncio.sleep(1.0)
        for key, found in list(context.hls.items()):
            session = context.engine.sessions.get(found.session)
            if time.monotonic() - found.seen > HLS_GONE_S or session is None:
                del context.hls[key]
                if session is not None:
                    viewers.leave(context.engine, session, found.viewer)
