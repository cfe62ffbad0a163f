"""The fragments of a session that are kept, and what a viewer gets next.

A history is bounded in bytes. A viewer reads at its own pace and holds nothing up. One that falls too far behind goes
on with the newest fragment, and is told what it missed.
"""

import dataclasses
import threading
from collections import deque
from typing import NamedTuple

from omniforcing_jax.serve.fragments import Fragment

PATIENCE_S = 10.0
"""Seconds of stream by which a viewer may fall behind the place where it began, before it loses fragments."""


class History:
    """The newest fragments of a session, in order. Threads may share it.

    Args:
        limit_bytes: Bytes that are kept at most. The newest fragment is always kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._kept: deque[Fragment] = deque()
        self._lock = threading.Lock()

    def add(self, fragment: Fragment) -> None:
        """Keep a fragment, and drop the oldest ones if there are too many bytes."""
        with self._lock:
            self._kept.append(fragment)
            self._bytes += len(fragment.data)
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= len(self._kept.popleft().data)

    def copy(self) -> "History":
        """Return a history with the same fragments, which then goes its own way."""
        with self._lock:
            other = History(self._limit)
            other._kept, other._bytes = deque(self._kept), self._bytes
            return other

    def all(self) -> tuple[Fragment, ...]:
        """Return all fragments that are kept."""
        with self._lock:
            return tuple(self._kept)

    def find(self, number: int) -> Fragment | None:
        """Return a fragment by its number; None if it is gone or not made yet."""
        with self._lock:
            at = number - self._kept[0].number if self._kept else -1
            return self._kept[at] if 0 <= at < len(self._kept) else None

    def newest(self) -> Fragment | None:
        """Return the newest fragment."""
        with self._lock:
            return self._kept[-1] if self._kept else None

    def oldest(self) -> Fragment | None:
        """Return the oldest fragment that is kept."""
        with self._lock:
            return self._kept[0] if self._kept else None

    def covering(self, second: float) -> Fragment | None:
        """Return the fragment that holds a stream second, or the nearest one."""
        with self._lock:
            return next((each for each in reversed(self._kept) if each.start_s <= second), self._first())

    def _first(self) -> Fragment | None:
        return self._kept[0] if self._kept else None


class Taken(NamedTuple):
    """What a viewer gets next: a fragment, or None if it has all; and how many were left out before it."""

    fragment: Fragment | None
    skipped: int


@dataclasses.dataclass
class Cursor:
    """How far a viewer has read.

    Attributes:
        number: The fragment that it wants next.
        lag_s: Seconds by which it may be behind the newest fragment.
    """

    number: int
    lag_s: float = PATIENCE_S

    def take(self, history: History) -> Taken:
        """Take the next fragment. What is gone, or too old by now, is left out."""
        wanted, newest = history.find(self.number), history.newest()
        if newest is None or newest.number < self.number:
            return Taken(None, 0)
        if wanted is None or newest.start_s - wanted.start_s > self.lag_s:
            wanted = newest
        skipped = wanted.number - self.number
        self.number = wanted.number + 1
        return Taken(wanted, skipped)


def begin(history: History, played_s: float, at_start: bool) -> Cursor:
    """Return the cursor of a new viewer.

    Args:
        history: The session's fragments.
        played_s: Where the other viewers are: the live edge.
        at_start: Begin with the oldest fragment that is kept, not at the live edge.
    """
    first, newest = history.oldest() if at_start else history.covering(played_s), history.newest()
    if first is None or newest is None:
        return Cursor(0)
    return Cursor(first.number, PATIENCE_S + newest.start_s - first.start_s)
