"""What the server answers to, in one table: the application and the API's document are both made from it."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omniforcing_jax.serve import handlers
from omniforcing_jax.serve.context import ServerContext
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
from omniforcing_jax.strict_json import loads

JSON_BYTES = 64_000  # of a request

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


_STREAM = "/v1/streams/{id:str}"
_FROM = {"from": "`start` begins with the oldest fragment that is kept; else the live edge"}
_FILE = {**_FROM, "until": "`now` ends with the newest fragment", "download": "`1` names the file for saving"}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/streams",
        summary="Make a stream; it waits in the queue until the device has time for it.",
        handler=handlers.create,
        body=StreamRequestBody,
        answer=StreamView,
        status=201,
    ),
    Endpoint(
        method="GET", path="/v1/streams", summary="List streams.", handler=handlers.list_streams, answer=StreamList
    ),
    Endpoint(method="GET", path=_STREAM, summary="Show a stream.", handler=handlers.show, answer=StreamView),
    Endpoint(method="DELETE", path=_STREAM, summary="End a stream and forget it.", handler=handlers.delete, status=204),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/prompt",
        summary="Change the prompt; the second receipt comes when a block shows it.",
        handler=handlers.prompt,
        body=PromptBody,
        answer=Receipt,
        status=202,
    ),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/camera",
        summary="Change the camera's keys from the next block on; the second receipt comes when it is there.",
        handler=handlers.camera,
        body=CameraBody,
        answer=Receipt,
        status=202,
    ),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/pause",
        summary="Make no more blocks.",
        handler=handlers.pause,
        answer=StreamView,
    ),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/resume",
        summary="Go on, also with a stream that was saved.",
        handler=handlers.resume,
        answer=StreamView,
    ),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/fork",
        summary="Make a second stream with the same past.",
        handler=handlers.fork,
        answer=StreamView,
        status=201,
    ),
    Endpoint(
        method="POST",
        path=f"{_STREAM}/save",
        summary="Save the stream to the disk.",
        handler=handlers.save,
        answer=SavedView,
    ),
    Endpoint(
        method="POST",
        path="/v1/uploads",
        summary="Take an image, a clip or a sound that a stream can begin with.",
        handler=handlers.upload,
        body=bytes,
        answer=UploadView,
        status=201,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/media.mp4",
        summary="Fragmented MP4 that grows.",
        handler=handlers.media_file,
        media=handlers.MP4,
        query=_FILE,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/index.m3u8",
        summary="HLS playlist with segments of fragmented MP4.",
        handler=handlers.playlist,
        media=handlers.PLAYLIST,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/header.mp4",
        summary="Header of segments.",
        handler=handlers.header,
        media=handlers.MP4,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/segments/{{number:int}}.m4s",
        summary="A segment.",
        handler=handlers.segment,
        media=handlers.MP4,
    ),
    Endpoint(
        method="GET",
        path=f"{_STREAM}/poster.png",
        summary="The newest frame.",
        handler=handlers.poster,
        media=handlers.PNG,
    ),
    Endpoint(
        method="GET",
        path="/v1/server",
        summary="What this server is and does.",
        handler=handlers.about,
        answer=ServerView,
    ),
    Endpoint(
        method="GET",
        path="/healthz",
        summary="Whether the engine lives.",
        handler=handlers.is_healthy,
        answer=ServerView,
    ),
    Endpoint(
        method="GET",
        path="/readyz",
        summary="Whether all programs are compiled.",
        handler=handlers.is_ready,
        answer=ServerView,
    ),
    Endpoint(
        method="GET", path="/metrics", summary="Figures for Prometheus.", handler=handlers.metrics, media=handlers.TEXT
    ),
    Endpoint(method="GET", path="/", summary="The page.", handler=handlers.index, media="text/html"),
    Endpoint(
        method="GET",
        path="/page/{name:str}",
        summary="A file of the page.",
        handler=handlers.page_file,
        media="text/plain",
    ),
)
