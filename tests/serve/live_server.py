"""A server in this process, with real sockets: for viewers that are real, too."""

import contextlib
import time

from omniforcing_jax.serve.app import make_app
from omniforcing_jax.serve.context import ServerContext
from omniforcing_jax.serve.door import Door
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.limits import Limits
from omniforcing_jax.serve.mock import MockStudio
from omniforcing_jax.serve.server import ServerThread, listen
from omniforcing_jax.serve.stored import Store
from omniforcing_jax.serve.uploads import Uploads


def make_context(studio=None, folder=None, token=None, clock=time.monotonic, **limits):
    """A context whose engine is not started."""
    engine = Engine(studio or MockStudio(), Limits(**limits), Store(folder), clock)
    return ServerContext(engine, engine.limits, Uploads(), Door(token, requests_per_s=engine.limits.requests_per_s))


@contextlib.contextmanager
def serving(context):
    """Serve at a free port; yields the address."""
    listener = listen("127.0.0.1", 0)
    context.engine.start()
    server = ServerThread(make_app(context), listener)
    while context.engine.stage == "loading":
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        context.engine.stop()
        listener.close()
