"""Viewers come, say where they are, take fragments and go."""

from collections.abc import Callable

from omniforcing_jax.serve import history, seats
from omniforcing_jax.serve.core import EngineCore
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.play_clock import PlayClock
from omniforcing_jax.serve.session import Session, Viewer

NEWS_S = 0.05  # seconds by which a report must be ahead of the reckoning to matter


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
    """Take what a viewer says of itself. The device's thread is woken if the stream may have to be made sooner."""
    with core.lock:
        now, was_playing = core.clock(), viewer.clock.is_playing
        before_s = viewer.clock.at(now)
        viewer.clock.report(second, is_playing, now)
        if is_playing and (not was_playing or viewer.clock.at(now) > before_s + NEWS_S):
            core.lock.notify_all()


def take(core: EngineCore, session: Session, viewer: Viewer) -> history.Taken:
    """Return what a viewer gets next.

    A viewer that gets a fragment plays on as the scheduler has reckoned. The device's thread is not woken for that.
    Many viewers would wake it many times per block.
    """
    with core.lock:
        now, taken = core.clock(), viewer.cursor.take(session.history)
        if taken.fragment is not None:
            if taken.skipped:
                viewer.clock.jump(taken.fragment.start_s, now)
                core.lock.notify_all()
            viewer.clock.send(taken.fragment.end_s, now)
        return taken
