"""A server in this process, with real sockets: for viewers that are real, too."""

import asyncio
import contextlib
import threading
import time

import uvicorn

from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.mock import MockStudio
from omniforcing_jax.serve.server import listen
from omniforcing_jax.serve.stored import Store
from omniforcing_jax.serve.uploads import Uploads


def make_context(studio=None, folder=None, token=None, **limits):
    """A context whose engine is not started."""
    engine = Engine(studio or MockStudio(), Limits(**limits), Store(folder))
    return ServerContext(engine, engine.limits, Uploads(), token)


@contextlib.contextmanager
def serving(context):
    """Serve at a free port; yields the address."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(context), log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    context.engine.start()
    thread.start()
    while not server.started or context.engine.stage == "loading":
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(5)
        context.engine.stop()
        listener.close()
