"""What the engine holds: sessions, the lock around them, and the threads that prepare and save.

`engine.py` drives the device; `seats.py`, `requests.py` and `viewers.py` change sessions. All of them take this.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from omniforcing_jax.io.answers import describe
from omniforcing_jax.serve import session as states
from omniforcing_jax.serve.history import History
from omniforcing_jax.serve.limits import Limits, RefusedError
from omniforcing_jax.serve.messages import SavedView, StreamRequestBody
from omniforcing_jax.serve.session import Session
from omniforcing_jax.serve.stored import Store, StoredSession
from omniforcing_jax.serve.studio import Source, Studio

log = logging.getLogger(__name__)

LOADING, READY, DRAINING, BROKEN = "loading", "ready", "draining", "failed"


class EngineCore:
    """Sessions and what they share.

    Args:
        studio: Opens sources.
        limits: Bounds of what clients may ask for.
        store: Where sessions are saved.
        clock: Seconds of a clock that never goes back.
        prefix: What the names of its sessions begin with, where several engines have one door.

    Attributes:
        stage: One of loading, ready, draining and failed.
        message: What is going on, in words.
        is_drained: Whether all is saved and the viewers may be told.
        lock: Guards all sessions; threads wait on it for news.
        cost: Seconds of work per second of stream, the mean of all sessions; None before any is known.
        totals: Counts since the start.
        preparing: The thread that reads prompts and compiles.
        saving: The thread that writes to the disk.
    """

    def __init__(
        self,
        studio: Studio,
        limits: Limits,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self.studio, self.limits, self.store, self.clock, self.prefix = studio, limits, store, clock, prefix
        self.stage, self.message, self.is_drained = LOADING, "starting", False
        self.lock = threading.Condition(threading.RLock())
        self.sessions: dict[str, Session] = {}
        self.cost: float | None = None
        self.totals: Counter[str] = Counter()
        self.preparing, self.saving = ThreadPoolExecutor(1, "prepare"), ThreadPoolExecutor(1, "save")
        for found in store.list():
            self.sessions[found.id] = self._offer(found)

    def _offer(self, found: StoredSession) -> Session:
        """Return the session of a saved one, which goes on when it is asked to."""
        session = self.new_session(found.id, found.body, "", self.studio.size)
        session.state, session.message = states.SAVED, "saved by an earlier run"
        session.saved_block = session.block = found.block
        session.prompt, session.camera = found.prompt, found.camera
        session.made_s = session.left_s = found.made_s
        return session

    def new_session(self, name: str, body: StreamRequestBody, client: str, size: tuple[int, int]) -> Session:
        """Return a session that waits for a seat."""
        now = self.clock()
        kept = History(self.limits.history_bytes)
        return Session(name, body, client, now, size, kept, prompt=body.prompt, camera=body.camera, unwatched_since=now)

    def save_as(self, about: StoredSession, source: Source) -> SavedView:
        """Write a source, as its session was when this was asked for. Others make room for it.

        Raises:
            RefusedError: It cannot be written, or there is no room; a line in the log says so, too.
        """
        is_new = not self.store.has(about.id)
        try:
            self.store.save(about, source)
            if (not self._make_room() and is_new) or not self.store.has(about.id):
                most = self.limits.state_bytes / 1e9
                raise ValueError(f"there is no room for it in the {most:g} GB of {self.store.folder}; see --state-gb")
        except (ValueError, OSError) as error:
            if is_new:
                self.store.remove(about.id)
            log.warning("stream %s is not saved: %s", about.id, describe(error))
            raise RefusedError(507, f"the stream is not saved: {describe(error)}") from None
        return SavedView(id=about.id, block=about.block)

    def _make_room(self) -> bool:
        """Remove saved sessions that do not run until the folder is small enough; returns whether it is."""
        sizes, gone = self.store.sizes(), list[str]()
        excess = sum(sizes.values()) - self.limits.state_bytes
        with self.lock:
            idle = [name for name in sizes if self._state_of(name) in (*states.OVER, states.SAVED)]
            for name in sorted(idle, key=lambda name: self._state_of(name) == states.SAVED):  # what is over goes first
                if excess <= 0:
                    break
                excess -= sizes[name]
                gone.append(name)
                self._end_saved(name)
        for name in gone:
            self.store.remove(name)
        return excess <= 0

    def _state_of(self, name: str) -> str:
        return self.sessions[name].state if name in self.sessions else states.ENDED

    def _end_saved(self, name: str) -> None:
        """Note that what was saved of a session is going to be removed."""
        session = self.sessions.get(name)
        if session is not None and session.state == states.SAVED:
            session.state, session.message = states.ENDED, "removed: newer streams needed its place on the disk"
            log.warning("stream %s was removed: newer ones needed its place on the disk", name)
            session.tell()

    def release(self, session: Session) -> None:
        """Let go of a session's source and encoder. The encoder's thread ends after what it is doing."""
        pipe, session.source, session.pipe = session.pipe, None, None
        session.is_seated = False
        if pipe is not None:
            self.saving.submit(pipe.__exit__, None, None, None)

    def find(self, name: str) -> Session:
        """Return a session.

        Raises:
            RefusedError: There is none of this name.
        """
        session = self.sessions.get(name)
        if session is None:
            raise RefusedError(404, "there is no such stream: it was deleted, or it ended long ago")
        return session

    def queue(self) -> list[Session]:
        """Return the sessions that wait for a seat, in order."""
        return [each for each in self.sessions.values() if each.state == states.QUEUED]

    def cost_of(self, session: Session) -> float:
        """Return the seconds of work per second of a session's stream, as far as it is known."""
        return session.cost or self.cost or 0.0

    def load(self) -> float:
        """Return the share of the device's time that running sessions take."""
        return sum((self.cost_of(each) for each in self.sessions.values() if each.is_seated), start=0.0)

    def wake(self) -> None:
        """Let the device's thread look again."""
        with self.lock:
            self.lock.notify_all()


def stored(session: Session) -> StoredSession:
    """Return what is written of a session beside its source."""
    return StoredSession(session.id, session.body, session.block, session.prompt, session.camera, session.made_s)
