"""Viewers come, say where they are, take fragments and go."""

from collections.abc import Callable

from omniforcing_jax.serve import history, seats
from omniforcing_jax.serve.core import EngineCore
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.play_clock import PlayClock
from omniforcing_jax.serve.session import Session, Viewer


def join(core: EngineCore, session: Session, wake: Callable[[], None], at_start: bool) -> Viewer:
    """Let somebody watch. `wake` is called whenever there is news.

    Raises:
        RefusedError: The session has as many viewers as it may.
    """
    with core.lock:
        if len(session.viewers) >= core.limits.viewers:
            raise RefusedError(503, f"the stream has {core.limits.viewers} viewers, the most it may have")
        now = core.clock()
        cursor = history.begin(session.history, session.played_s(now), at_start)
        first = session.history.find(cursor.number)
        place = 0.0 if first is None else first.start_s
        viewer = Viewer(PlayClock(place, now, place), cursor, wake)
        session.viewers.append(viewer)
        seats.want(core, session)
        core.lock.notify_all()
    return viewer


def leave(core: EngineCore, session: Session, viewer: Viewer) -> None:
    """Note that a viewer is gone."""
    with core.lock:
        now = core.clock()
        session.left_s = max(session.left_s, viewer.clock.at(now))
        session.viewers.remove(viewer)
        session.unwatched_since = now
        session.tell()


def report(core: EngineCore, session: Session, viewer: Viewer, second: float, is_playing: bool) -> None:
    """Take what a viewer says of itcore."""
    with core.lock:
        viewer.clock.report(second, is_playing, core.clock())
        core.lock.notify_all()


def take(core: EngineCore, session: Session, viewer: Viewer) -> history.Taken:
    """Return what a viewer gets next."""
    with core.lock:
        now, taken = core.clock(), viewer.cursor.take(session.history)
        if taken.fragment is not None:
            if taken.skipped:
                viewer.clock.jump(taken.fragment.start_s, now)
            viewer.clock.send(taken.fragment.end_s, now)
            core.lock.notify_all()
        return taken
