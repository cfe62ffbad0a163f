"""What the server answers to, in one table: the application and the API's document are both made from it."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from omniforcing_jax.serve import live, page, requests
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.core import READY
from omniforcing_jax.serve.guard import client_of
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.messages import (
    PromptBody,
    Receipt,
    SavedView,
    ServerView,
    StreamList,
    StreamRequestBody,
    StreamView,
    UploadView,
)
from omniforcing_jax.serve.metrics import render_metrics
from omniforcing_jax.serve.poster import make_png
from omniforcing_jax.serve.server_view import view_server
from omniforcing_jax.serve.session import Session
from omniforcing_jax.strict_json import loads

JSON_BYTES = 64_000  # of a request
PLAYLIST = "application/vnd.apple.mpegurl"
MP4, PNG, TEXT = "video/mp4", "image/png", "text/plain; version=0.0.4"

Handler = Callable[[ServerContext, Request, Any], Awaitable[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One thing that the server answers to.

    Attributes:
        method: HTTP method.
        path: Path with its parameters in braces.
        summary: What it does, in one sentence.
        handler: Takes the context, the request and the parsed body.
        body: Type of the body; None takes none, bytes takes a file.
        answer: Type of the answer's JSON; None if it is something else.
        media: Media type of an answer that is no JSON.
        status: Status of the answer.
        query: Query parameters, each with what it means.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    body: type | None = None
    answer: type | None = None
    media: str = "application/json"
    status: int = 200
    query: Mapping[str, str] = dataclasses.field(default_factory=dict)


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body that may have so many bytes.

    Raises:
        RefusedError: It has more.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > limit:
            raise RefusedError(413, f"the body has more than {limit} bytes")
    return bytes(found)


def answer(endpoint: Endpoint, context: ServerContext) -> Callable[[Request], Awaitable[Response]]:
    """Return what Starlette calls for an endpoint: it parses the body and turns refusals into JSON."""

    async def respond(request: Request) -> Response:
        try:
            found = await endpoint.handler(context, request, await _parse(endpoint, context, request))
        except RefusedError as refusal:
            return JSONResponse({"error": refusal.message}, refusal.status)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 422)
        if isinstance(found, Response):
            return found
        return JSONResponse(dataclasses.asdict(found), endpoint.status)

    return respond


async def _parse(endpoint: Endpoint, context: ServerContext, request: Request) -> Any:
    if endpoint.body is None:
        return None
    if endpoint.body is bytes:
        return await read_body(request, context.limits.upload_bytes)
    data = await read_body(request, JSON_BYTES)
    return endpoint.body.from_dict(loads(data, "body"))  # pyright: ignore[reportAttributeAccessIssue]


def _session(context: ServerContext, request: Request) -> Session:
    return context.engine.find(request.path_params["id"])


async def create(context: ServerContext, request: Request, body: StreamRequestBody) -> StreamView:
    """Make a stream."""
    client = client_of(request.scope)
    start = None if body.start is None else context.uploads.find(body.start, client)
    session = await asyncio.to_thread(requests.create, context.engine, body, client, start)
    return requests.view(context.engine, session)


async def list_streams(context: ServerContext, request: Request, body: None) -> StreamList:
    """List all streams."""
    with context.engine.lock:
        sessions = list(context.engine.sessions.values())
    return StreamList(streams=tuple(requests.view(context.engine, each) for each in sessions))


async def show(context: ServerContext, request: Request, body: None) -> StreamView:
    """Show one stream."""
    return requests.view(context.engine, _session(context, request))


async def prompt(context: ServerContext, request: Request, body: PromptBody) -> Receipt:
    """Change the prompt of a stream."""
    return await asyncio.to_thread(requests.change_prompt, context.engine, _session(context, request), body)


async def pause(context: ServerContext, request: Request, body: None) -> StreamView:
    """Pause a stream."""
    session = _session(context, request)
    requests.pause(context.engine, session, True)
    return requests.view(context.engine, session)


async def resume(context: ServerContext, request: Request, body: None) -> StreamView:
    """Let a stream go on."""
    session = _session(context, request)
    requests.pause(context.engine, session, False)
    return requests.view(context.engine, session)


async def fork(context: ServerContext, request: Request, body: None) -> StreamView:
    """Fork a stream."""
    done = requests.fork(context.engine, _session(context, request), client_of(request.scope))
    return requests.view(context.engine, await asyncio.wrap_future(done))


async def save(context: ServerContext, request: Request, body: None) -> SavedView:
    """Save a stream."""
    written = await asyncio.wrap_future(requests.save(context.engine, _session(context, request)))
    saved = await asyncio.wrap_future(written)
    if saved is None:
        raise RefusedError(507, "the stream could not be saved; the server's log says why")
    return saved


async def delete(context: ServerContext, request: Request, body: None) -> Response:
    """Delete a stream."""
    await asyncio.to_thread(requests.delete, context.engine, _session(context, request))
    return Response(status_code=204)


async def upload(context: ServerContext, request: Request, body: bytes) -> UploadView:
    """Take a file."""
    size = context.engine.studio.size
    name, media = await context.uploads.add(body, size, client_of(request.scope))
    return UploadView(id=name, kind=media.kind, seconds=media.seconds)


async def media_file(context: ServerContext, request: Request, body: None) -> Response:
    """Send a growing file, or what there is of it."""
    session, query = _session(context, request), request.query_params
    headers = {}
    if query.get("download"):
        headers["content-disposition"] = f'attachment; filename="omniforcing-{session.id}.mp4"'
    if query.get("until") == "now":
        if session.fragmenter is None:
            raise RefusedError(409, f"there is nothing yet: {session.message or session.state}")
        data = b"".join([session.fragmenter.init, *(each.data for each in session.history.all())])
        return Response(data, media_type=MP4, headers=headers)
    pieces = live.grow_file(context, session, query.get("from") == "start")
    return StreamingResponse(pieces, media_type=MP4, headers=headers)


async def playlist(context: ServerContext, request: Request, body: None) -> Response:
    """Send a playlist."""
    token = request.query_params.get("token")
    query = "" if token is None else f"?token={token}" if token.isalnum() else ""
    text = await live.playlist(context, _session(context, request), client_of(request.scope), query)
    return Response(text, media_type=PLAYLIST)


async def header(context: ServerContext, request: Request, body: None) -> Response:
    """Send the header of all segments."""
    fragmenter = _session(context, request).fragmenter
    if fragmenter is None:
        raise RefusedError(409, "the stream has no header yet")
    return Response(fragmenter.init, media_type=MP4)


async def segment(context: ServerContext, request: Request, body: None) -> Response:
    """Send a segment."""
    number, session = request.path_params["number"], _session(context, request)
    return Response(live.take_segment(context, session, client_of(request.scope), number), media_type=MP4)


async def poster(context: ServerContext, request: Request, body: None) -> Response:
    """Send the newest frame."""
    frame = _session(context, request).frame
    if frame is None:
        raise RefusedError(409, "the stream has no frame yet")
    return Response(await asyncio.to_thread(make_png, frame), media_type=PNG)


async def about(context: ServerContext, request: Request, body: None) -> ServerView:
    """Show the server."""
    return view_server(context.engine, context.version)


async def is_healthy(context: ServerContext, request: Request, body: None) -> ServerView:
    """Say whether the engine lives."""
    if not context.engine.is_alive():
        raise RefusedError(503, context.engine.message)
    return view_server(context.engine, context.version)


async def is_ready(context: ServerContext, request: Request, body: None) -> ServerView:
    """Say whether all programs are compiled and streams are taken."""
    if context.engine.stage != READY:
        raise RefusedError(503, f"{context.engine.stage}: {context.engine.message}")
    return view_server(context.engine, context.version)


async def metrics(context: ServerContext, request: Request, body: None) -> Response:
    """Send figures for Prometheus."""
    return Response(render_metrics(context.engine), media_type=TEXT)


async def index(context: ServerContext, request: Request, body: None) -> Response:
    """Send the page."""
    return page.respond("index.html")


async def page_file(context: ServerContext, request: Request, body: None) -> Response:
    """Send a file of the page."""
    return page.respond(request.path_params["name"])


_STREAM = "/v1/streams/{id:str}"
_FROM = {"from": "`start` begins with the oldest fragment that is kept; else the live edge"}
_FILE = {**_FROM, "until": "`now` ends with the newest fragment", "download": "`1` names the file for saving"}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/streams",
        summary="Make a stream; it waits in the queue until the device has time for it.",
        handler=create,
        body=StreamRequestBody,
        answer=StreamView,
        status=201,
    ),
    Endpoint(method="GET", path="/v1/streams", summary="List streams.", handler=list_streams, answer=StreamList),
    Endpoint(method="GET", path=_STREAM, summary="Show a stream.", handler=show, answer=StreamView),
    Endpoint(method="DELETE", path=_STREAM, summary="End a stream and forget it.", handler=delete, status=204),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/prompt",
        summary="Change the prompt; the second receipt comes when a block shows it.",
        handler=prompt,
        body=PromptBody,
        answer=Receipt,
        status=202,
    ),
    Endpoint(method="POST", path=f"{_STREAM}/pause", summary="Make no more blocks.", handler=pause, answer=StreamView),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/resume",
        summary="Go on, also with a stream that was saved.",
        handler=resume,
        answer=StreamView,
    ),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/fork",
        summary="Make a second stream with the same past.",
        handler=fork,
        answer=StreamView,
        status=201,
    ),
    Endpoint(
        method="POST", path=f"{_STREAM}/save", summary="Save the stream to the disk.", handler=save, answer=SavedView
    ),
    Endpoint(
        method="POST",
        path="/v1/uploads",
        summary="Take an image, a clip or a sound that a stream can begin with.",
        handler=upload,
        body=bytes,
        answer=UploadView,
        status=201,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/media.mp4",
        summary="Fragmented MP4 that grows.",
        handler=media_file,
        media=MP4,
        query=_FILE,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/index.m3u8",
        summary="HLS playlist with segments of fragmented MP4.",
        handler=playlist,
        media=PLAYLIST,
    ),
    Endpoint(method="GET", path=f"{_STREAM}/header.mp4", summary="Header of segments.", handler=header, media=MP4),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/segments/{{number:int}}.m4s",
        summary="A segment.",
        handler=segment,
        media=MP4,
    ),
    Endpoint(method="GET", path=f"{_STREAM}/poster.png", summary="The newest frame.", handler=poster, media=PNG),
    Endpoint(
        method="GET", path="/v1/server", summary="What this server is and does.", handler=about, answer=ServerView
    ),
    Endpoint(method="GET", path="/healthz", summary="Whether the engine lives.", handler=is_healthy, answer=ServerView),
    Endpoint(
        method="GET", path="/readyz", summary="Whether all programs are compiled.", handler=is_ready, answer=ServerView
    ),
    Endpoint(method="GET", path="/metrics", summary="Figures for Prometheus.", handler=metrics, media=TEXT),
    Endpoint(method="GET", path="/", summary="The page.", handler=index, media="text/html"),
    Endpoint(
        method="GET", path="/page/{name:str}", summary="A file of the page.", handler=page_file, media="text/plain"
    ),
)
