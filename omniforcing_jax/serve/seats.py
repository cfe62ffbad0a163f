"""Seats: which sessions are made at present, how one gets its source, and when it is put away.

Called with the core's lock held, except for what runs in the thread that prepares.
"""

import logging
from functools import partial

from omniforcing_jax.io.answers import describe
from omniforcing_jax.serve import schedule
from omniforcing_jax.serve import session as states
from omniforcing_jax.serve.core import READY, EngineCore, stored
from omniforcing_jax.serve.fragments import Fragmenter
from omniforcing_jax.serve.history import History
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.session import Session
from omniforcing_jax.serve.stored import StoredSession
from omniforcing_jax.serve.studio import Source
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.mp4 import Overlapped

log = logging.getLogger(__name__)

UNSEEN_S = 10.0  # a session that nobody has watched for so long gives up its seat if another one waits


def seat(core: EngineCore, now: float) -> None:
    """Give free seats to those who wait; seats that nobody needs become free."""
    if core.stage != READY:
        return
    waiting = core.queue()
    if not waiting:
        return
    for session in core.sessions.values():
        unseen = not session.viewers and now - session.unwatched_since > UNSEEN_S
        if session.is_seated and session.state == states.RUNNING and (unseen or session.is_paused):
            session.is_seated = False
    running = [core.cost_of(each) for each in core.sessions.values() if each.is_seated]
    admitted = schedule.count_admitted([core.cost_of(each) for each in waiting], running, core.limits.seats)
    for session in waiting[:admitted]:
        session.is_seated, session.unwatched_since = True, now
        if session.source is None:
            begin(core, session)
        else:
            session.state, session.message = states.RUNNING, ""
        session.tell()


def begin(core: EngineCore, session: Session) -> None:
    """Open a session's source in the thread that prepares."""
    session.state, session.message = states.PREPARING, "reading the prompt"

    def say(text: str) -> None:
        session.message = text
        session.tell()

    def prepare() -> None:
        try:
            if session.saved_block:
                core.saving.submit(lambda: None).result()  # it may be on its way to the disk
                source = core.studio.reopen(core.store.stream_of(session.id))
            else:
                source = core.studio.open(session.body, session.start, say)
            connect(core, session, source)
            if session.state in states.OVER:  # deleted meanwhile
                core.release(session)
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("stream %s could not be opened", session.id)
            fail(core, session, error)

    core.preparing.submit(prepare)


def connect(core: EngineCore, session: Session, source: Source) -> None:
    """Give a session its source and an encoder."""
    height, width = source.picture_size
    fragmenter = Fragmenter(height=height, width=width, sample_rate=source.sample_rate, first=session.fragments)
    with core.lock:
        session.source, session.fragmenter, session.start = source, fragmenter, None
        session.pipe = Overlapped(partial(encode, core, session))
        if session.id in core.sessions:
            session.state, session.message = states.RUNNING, ""
        session.tell()
        core.lock.notify_all()


def retire(core: EngineCore, now: float) -> None:
    """Save and close what nobody has watched for long; forget what is over."""
    for session in list(core.sessions.values()):
        if session.viewers or session.is_at_work or now - session.unwatched_since < core.limits.idle_s:
            continue
        if session.state in states.OVER:
            del core.sessions[session.id]
        elif session.state in (states.RUNNING, states.QUEUED):
            put_away(core, session)


def put_away(core: EngineCore, session: Session) -> None:
    """Take a session's source away: saved where there is a folder for that, else gone."""
    source = session.source
    if core.store.folder is None or source is None or not session.block:
        session.state, session.message = states.ENDED, "closed, because nobody watched"
    else:
        core.saving.submit(_save_or_end, core, session, stored(session), source)
        session.state, session.message = states.SAVED, "saved, because nobody watched"
        session.saved_block, session.left_s = session.block, session.made_s
        session.history, session.fragmenter = History(core.limits.history_bytes), None
    core.release(session)
    session.tell()


def _save_or_end(core: EngineCore, session: Session, about: StoredSession, source: Source) -> None:
    try:
        core.save_as(about, source)
    except RefusedError as refusal:
        with core.lock:
            if session.state == states.SAVED:
                session.state, session.message = states.ENDED, refusal.message
                session.tell()


def want(core: EngineCore, session: Session) -> None:
    """Let a session that has no seat wait for one."""
    if session.state == states.SAVED or (session.state == states.RUNNING and not session.is_seated):
        session.state, session.message = states.QUEUED, "waiting for a place"
        seat(core, core.clock())


def fail(core: EngineCore, session: Session, error: Exception) -> None:
    """End a session by an error. The others go on."""
    with core.lock:
        session.state, session.message = states.FAILED, describe(error)
        log.warning("stream %s failed: %s", session.id, session.message)
        core.release(session)
        session.tell()


def encode(core: EngineCore, session: Session, chunk: Chunk) -> None:
    """Encode a chunk of a session: runs in the session's own encoder thread."""
    fragmenter = session.fragmenter
    assert fragmenter is not None, "a prepared session has an encoder"
    fragment = fragmenter.push(chunk)
    if len(chunk.video):
        session.frame = chunk.video[-1].copy()
    if fragment is not None:
        with core.lock:
            core.totals["fragment_bytes"] += len(fragment.data)
            session.publish(fragment, core.clock())
