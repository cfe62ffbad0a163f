"""The application: the table of endpoints, the WebSocket and the guard around them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from omniforcing_jax.serve import live
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.endpoints import ENDPOINTS, answer
from omniforcing_jax.serve.guard import Guard
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.openapi import describe_api


def make_app(context: ServerContext) -> Starlette:
    """Return the application of a server.

    Args:
        context: The engine, limits, uploads and token. The engine is started by the caller.
    """

    async def document(request: Request) -> Response:
        return JSONResponse(describe_api(context.version))

    async def follow(socket: WebSocket) -> None:
        try:
            session = context.engine.find(socket.path_params["id"])
        except RefusedError as refusal:
            await socket.send_denial_response(JSONResponse({"error": refusal.message}, refusal.status))
            return
        await socket.accept()
        talk = live.Talk(socket, context, session)
        try:
            await talk.run(socket.query_params.get("from") == "start")
        except RefusedError as refusal:
            await talk.refuse(refusal.message)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(live.forget_hls(context))
        yield
        task.cancel()

    routes = [Route(each.path, answer(each, context), methods=[each.method]) for each in ENDPOINTS]
    return Starlette(
        routes=[
            *routes,
            Route("/v1/openapi.json", document),
            WebSocketRoute("/v1/streams/{id:str}/live", follow),
        ],
        middleware=[Middleware(Guard, door=context.door)],
        lifespan=lifespan,
        exception_handlers={404: _not_found, 405: _not_found},
    )


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    text = "there is nothing at this address; see /v1/openapi.json"
    return JSONResponse({"error": text}, status)
