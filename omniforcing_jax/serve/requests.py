"""What clients ask of sessions. Each call is brief: it notes what is wanted, and the device's thread does it.

What concerns a source is done between two of its blocks.
"""

import dataclasses
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from omniforcing_jax.serve import seats
from omniforcing_jax.serve import session as states
from omniforcing_jax.serve.core import BROKEN, DRAINING, EngineCore, stored
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.messages import (
    CAMERA,
    PROMPT,
    CameraBody,
    PromptBody,
    Receipt,
    SavedView,
    StreamRequestBody,
    StreamView,
)
from omniforcing_jax.serve.session import Change, Session
from omniforcing_jax.serve.studio import Source, StartMedia
from omniforcing_jax.strict_json import require

log = logging.getLogger(__name__)

NAME_LETTERS, NAME_LENGTH = "abcdefghijkmnpqrstuvwxyz23456789", 12


def create(core: EngineCore, body: StreamRequestBody, client: str, start: StartMedia | None = None) -> Session:
    """Make a session. It waits in the queue until it has a seat.

    Raises:
        ValueError: The request cannot be met.
        RefusedError: There are too many sessions already.
    """
    size = core.studio.check(body, start)
    with core.lock:
        check_room(core, client)
        session = core.new_session(_new_name(core), body, client, size)
        session.start = start
        core.sessions[session.id] = session
        core.totals["streams_created"] += 1
        seats.seat(core, core.clock())
        core.lock.notify_all()
    log.info("stream %s was made for %s", session.id, client)
    return session


def check_room(core: EngineCore, client: str) -> None:
    """Refuse a new session if there are too many.

    Raises:
        RefusedError: There are, or the server is going down.
    """
    if core.stage in (DRAINING, BROKEN):
        raise RefusedError(503, f"no new streams: {core.message}")
    alive = [each for each in core.sessions.values() if each.state not in (*states.OVER, states.SAVED)]
    most = core.limits.max_sessions
    if len(alive) >= most:
        raise RefusedError(503, f"there are {most} streams, the most this server holds; try again later")
    own = sum(each.client == client for each in alive)
    if own >= core.limits.per_client:
        raise RefusedError(429, f"you have {own} streams, the most for one client; delete one first")


def view(core: EngineCore, session: Session) -> StreamView:
    """Return a session as viewers see it."""
    with core.lock:
        waiting = core.queue()
        place = 1 + waiting.index(session) if session in waiting else None
        return session.view(place, core.clock(), core.studio.block_s)


def change_prompt(core: EngineCore, session: Session, body: PromptBody) -> Receipt:
    """Note another prompt; its text is encoded by the thread that prepares.

    Raises:
        ValueError: It cannot be read.
        RefusedError: The stream is over, or too many changes wait.
    """
    core.studio.check_prompt(body.prompt)
    with core.lock:
        check_alive(session)
        waiting = len(session.waiting(PROMPT))
        if waiting >= states.WAITING_CHANGES:
            raise RefusedError(429, f"{waiting} changes of prompt wait already")
        made_s = round(session.made_s, 3)
        if body.at is not None and body.at < made_s:
            raise ValueError(f"at={body.at:g}: {made_s:g} s of the stream are made already; give a later second")
        receipt = _first_receipt(core, session, PROMPT, prompt=body.prompt)
        contexts: Future[Any] = core.preparing.submit(core.studio.encode, body.prompt)
        contexts.add_done_callback(lambda _: core.wake())

        def apply(source: Source) -> None:
            source.set_prompt(body.prompt, contexts.result(), body.recompute, body.fade)

        _take(session, Change(receipt, core.clock(), apply, body.at, contexts))
    return receipt


def change_camera(core: EngineCore, session: Session, body: CameraBody) -> Receipt:
    """Note other camera keys. They wait for no text. Of those that wait for the next block, only the last are kept.

    Raises:
        ValueError: The weights have no camera.
        RefusedError: The stream is over.
    """
    require(core.studio.has_camera, "camera", body.camera, f"{core.studio.name!r} has no camera attention")
    with core.lock:
        check_alive(session)
        session.replace(session.waiting(CAMERA))
        receipt = _first_receipt(core, session, CAMERA, camera=body.camera)
        _take(session, Change(receipt, core.clock(), lambda source: source.set_camera(body.camera)))
        session.bound_receipts(CAMERA, states.CAMERA_RECEIPTS)
    return receipt


def _first_receipt(core: EngineCore, session: Session, kind: str, **change: str | None) -> Receipt:
    seen_s = round(session.played_s(core.clock()), 3)
    return dataclasses.replace(Receipt(id=_new_name(core), kind=kind, stage="received", received_s=seen_s), **change)


def _take(session: Session, change: Change) -> None:
    session.changes.append(change)
    session.replace_receipt(change.receipt)


def check_alive(session: Session) -> None:
    """Refuse a session that is over.

    Raises:
        RefusedError: It is.
    """
    if session.state in states.OVER:
        raise RefusedError(409, f"the stream is over: {session.message}")


def pause(core: EngineCore, session: Session, is_paused: bool) -> None:
    """Stop making blocks, or go on; also of a session that was saved."""
    with core.lock:
        check_alive(session)
        session.is_paused = is_paused
        if not is_paused:
            seats.want(core, session)
        session.tell()
        core.lock.notify_all()


def at_border(core: EngineCore, session: Session, work: Callable[[Source], Any]) -> "Future[Any]":
    """Do something with a session's source between two of its blocks, in the device's thread.

    Raises:
        RefusedError: The session has no source now.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            if session.source is None:
                raise RefusedError(409, f"the stream is not running: {session.state}")
            done.set_result(work(session.source))
        except Exception as error:
            done.set_exception(error)

    with core.lock:
        if session.source is None:
            raise RefusedError(409, f"the stream is {session.state}: wait until it runs")
        session.todo.append(run)
        core.lock.notify_all()
    return done


def fork(core: EngineCore, session: Session, client: str) -> "Future[Session]":
    """Make a second future of a session's past."""
    with core.lock:
        check_room(core, client)

    def work(source: Source) -> Session:
        other = core.new_session(_new_name(core), session.body, client, session.size)
        other.history, other.fragments = session.history.copy(), session.fragments
        other.prompt, other.camera = session.prompt, session.camera
        other.block, other.made_s = session.block, session.made_s
        other.left_s, other.cost = session.played_s(core.clock()), session.cost
        seats.connect(core, other, source.fork())
        other.state = states.QUEUED
        core.sessions[other.id] = other
        seats.seat(core, core.clock())
        return other

    return at_border(core, session, work)


def save(core: EngineCore, session: Session) -> "Future[Future[SavedView]]":
    """Save a session, which goes on meanwhile. The inner future is there at the next border.

    Raises:
        RefusedError: The server has no folder for that, or the session has no block yet.
    """
    if core.store.folder is None:
        raise RefusedError(409, "the server keeps no streams: it was started without --state")
    if not session.block:
        raise RefusedError(409, "the stream has no block yet")

    def work(source: Source) -> "Future[SavedView]":
        session.saved_block = session.block
        return core.saving.submit(core.save_as, stored(session), source.fork())

    return at_border(core, session, work)


def delete(core: EngineCore, session: Session) -> None:
    """End a session and forget it, on disk too."""
    with core.lock:
        core.sessions.pop(session.id, None)
        session.state, session.message = states.ENDED, "the stream was deleted"
        if not session.is_at_work:  # else the device's thread does it
            core.release(session)
        session.tell()
        core.lock.notify_all()
    core.saving.submit(core.store.remove, session.id)
    log.info("stream %s was deleted after %d blocks", session.id, session.block)


def _new_name(core: EngineCore) -> str:
    length = NAME_LENGTH - len(core.prefix)
    return core.prefix + "".join(secrets.choice(NAME_LETTERS) for _ in range(length))
