"""The engine: the thread that makes the blocks of all sessions, one at a time.

A second thread prepares (text, compilation) and a third one saves. Turns are taken at block borders.
"""

import dataclasses
import logging
import threading

from omniforcing_jax.io.answers import describe
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.serve import schedule, seats
from omniforcing_jax.serve import session as states
from omniforcing_jax.serve.core import BROKEN, DRAINING, READY, EngineCore, stored
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.session import Change, Session
from omniforcing_jax.serve.studio import Source

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 1.0  # of the device's thread, until it looks again


class Engine(EngineCore):
    """Makes the blocks of all sessions; arguments as for `EngineCore`.

    Attributes:
        work_s: Seconds of work on blocks since the start.
    """

    work_s = 0.0
    _thread: threading.Thread | None = None
    _is_ending = False

    def start(self) -> None:
        """Load, compile and then make blocks, in threads of their own."""
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def warm(self) -> None:
        """Load and compile. Requests wait until then."""
        try:
            cost = self.studio.warm(self._say)
        except Exception as error:
            log.exception("the engine could not start")
            self.stage, self.message = BROKEN, describe(error)
            return
        self.cost = cost or None
        self.stage, self.message = READY, "ready"

    def drain(self) -> None:
        """Take no new sessions, finish the block under way, save what runs, and tell the viewers."""
        with self.lock:
            self.stage, self.message = DRAINING, "the server is going down"
            running = [each for each in self.sessions.values() if each.source is not None and each.block]
            for session in self.sessions.values():
                session.message = "the server is going down"
        self.stop()
        for session in running if self.store.folder is not None else ():
            if session.state not in states.OVER and session.source is not None:
                self._save_last(session, session.source)
        with self.lock:
            self.is_drained = True
            for session in self.sessions.values():
                session.tell()

    def _save_last(self, session: Session, source: Source) -> None:
        try:
            self.save_as(stored(session), source)
            session.message += "; the stream is saved"
        except RefusedError as refusal:
            session.message += f"; {refusal.message}"

    def stop(self) -> None:
        """End the threads after what they are doing."""
        with self.lock:
            self._is_ending = True
            self.lock.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.preparing.shutdown(cancel_futures=True)
        self.saving.shutdown()
        for session in self.sessions.values():
            if session.pipe is not None:
                session.pipe.__exit__(None, None, None)
                session.pipe = None

    def is_alive(self) -> bool:
        """Return whether blocks can be made."""
        return self._thread is not None and self._thread.is_alive() and self.stage != BROKEN

    def _say(self, text: str) -> None:
        self.message = text

    def _run(self) -> None:
        self.warm()
        while not self._is_ending and self.stage != BROKEN:
            wait_s = self.step()
            if wait_s > 0:
                with self.lock:
                    if not self._is_ending:
                        self.lock.wait(min(wait_s, LONGEST_WAIT_S))

    def step(self) -> float:
        """Do what is next: make one block. Returns the seconds until there may be more to do, 0 for at once."""
        with self.lock:
            now = self.clock()
            seats.seat(self, now)
            seats.retire(self, now)
            for session in list(self.sessions.values()):
                if session.todo and not session.is_at_work:
                    session.todo.pop(0)()
                    return 0.0
            able = {each.id: each for each in self.sessions.values() if each.can_go_on()}
            claims = [each.claim(self.studio.block_s, now) for each in able.values()]
            chosen = schedule.choose(claims, self.limits.ahead_s)
            if chosen is None:
                return schedule.wait_for_any(claims, self.limits.ahead_s)
            session = able[chosen.name]
            session.is_at_work = True
        try:
            self._make(session)
        except Exception as error:
            log.exception("stream %s failed", session.id)
            seats.fail(self, session, error)
        finally:
            with self.lock:
                session.is_at_work = False
                if session.state in states.OVER:  # deleted meanwhile
                    self.release(session)
        return 0.0

    def _make(self, session: Session) -> None:
        """Make one block of a session, and hand it to its encoder."""
        source = session.source
        assert source is not None, "only a session with a source can go on"
        with self.lock:
            changes = session.take_changes()
        for change in changes:
            self._apply(session, source, change)
        began = self.clock()
        chunk = source.make()
        if chunk is None:
            self._end(session)
            return
        pipe = session.pipe
        assert pipe is not None, "a prepared session has an encoder"
        pipe(chunk)
        took = self.clock() - began
        with self.lock:
            self.totals["blocks"] += 1
            self.work_s += took
            session.block = source.block
            length = len(chunk.video) / FRAME_RATE
            session.made_s = max(session.made_s, chunk.video_start_s + length)
            if chunk.index > 0 and length:
                session.cost = schedule.mean_cost(session.cost, took / length)
                self.cost = schedule.mean_cost(self.cost, took / length)
        self._save_now_and_then(session, source)

    def _apply(self, session: Session, source: Source, change: Change) -> None:
        try:
            change.apply(source)
        except ValueError as error:
            with self.lock:
                session.settle(change, dataclasses.replace(change.receipt, stage="refused", message=describe(error)))
            return
        with self.lock:
            session.note(change, source.block)

    def _end(self, session: Session) -> None:
        pipe, fragmenter = session.pipe, session.fragmenter
        if pipe is not None:
            pipe.__exit__(None, None, None)
        rest = None if fragmenter is None else fragmenter.close()
        with self.lock:
            if rest is not None:
                session.publish(rest, self.clock())
            session.state, session.message, session.is_seated = states.ENDED, "the stream has ended", False
            session.source = session.pipe = None
            session.tell()
        self.saving.submit(self.store.remove, session.id)

    def _save_now_and_then(self, session: Session, source: Source) -> None:
        """Save every so many blocks: a copy, so that the stream need not wait for the disk."""
        every = self.limits.save_every
        if self.store.folder is None or not every or session.block - session.saved_block < every:
            return
        session.saved_block = session.block
        self.saving.submit(self.save_as, stored(session), source.fork())
