"""What each endpoint does: from a request to the dataclass of its answer, or to a response that is no JSON."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from omniforcing_jax.serve import live, page, requests
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.core import READY
from omniforcing_jax.serve.guard import client_of
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.messages import (
    CameraBody,
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

PLAYLIST = "application/vnd.apple.mpegurl"
MP4, PNG, TEXT = "video/mp4", "image/png", "text/plain; version=0.0.4"


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


async def camera(context: ServerContext, request: Request, body: CameraBody) -> Receipt:
    """Change the camera of a stream."""
    return requests.change_camera(context.engine, _session(context, request), body)


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
    return await asyncio.wrap_future(written)


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
