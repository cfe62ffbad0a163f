"""The server as viewers see it."""

import omniforcing_jax.serve.session as states
from omniforcing_jax.serve.engine import Engine
from omniforcing_jax.serve.messages import ServerView


def view_server(engine: Engine, version: str) -> ServerView:
    """Return what an engine is and does."""
    studio = engine.studio
    with engine.lock:
        running = sum(each.state == states.RUNNING and each.is_seated for each in engine.sessions.values())
        waiting, load = len(engine.queue()), engine.load()
    return ServerView(
        version=version,
        weights=studio.name,
        is_mock=studio.is_mock,
        has_camera=studio.has_camera,
        needs_picture=studio.needs_picture,
        stage=engine.stage,
        message=engine.message,
        height=studio.size[0],
        width=studio.size[1],
        block_s=studio.block_s,
        ahead_s=engine.limits.ahead_s,
        suggestions=studio.suggestions,
        words=studio.words,
        running=running,
        waiting=waiting,
        load=round(load, 3),
    )
