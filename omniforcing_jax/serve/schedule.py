"""Who is next: pure rules over plain numbers, without threads, clocks and devices.

The device makes one block at a time. The next one belongs to the session whose viewers will first run out of stream:
earliest deadline first. A session never works further ahead of its viewers than it may. Seats bound how many sessions
are made at once, so that those that run can be held in real time.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

BUSY = 0.75
"""Share of the device's time that running sessions may take together. The rest absorbs slow blocks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A session that could make its next block now.

    Attributes:
        name: The session.
        made_s: Seconds of stream that are made.
        block_s: Length of its next block in seconds.
        played_s: Where its fastest viewer is, or where the last one left.
        is_played: Whether anybody is playing it.
    """

    name: str
    made_s: float
    block_s: float
    played_s: float
    is_played: bool

    @property
    def lead_s(self) -> float:
        """Seconds that are made and not played."""
        return self.made_s - self.played_s

    def deadline(self) -> float:
        """Seconds from now until its fastest viewer has nothing left."""
        return self.lead_s if self.is_played else math.inf

    def wait(self, ahead_s: float) -> float:
        """Seconds until its next block may be begun; infinite while nobody plays what is there."""
        early = self.lead_s + self.block_s - ahead_s
        if early <= 0:
            return 0.0
        return early if self.is_played else math.inf


def choose(claims: Iterable[Claim], ahead_s: float) -> Claim | None:
    """Return the claim whose block is made next; None if none may be begun.

    Args:
        claims: The sessions that could go on.
        ahead_s: Seconds that a session may be ahead of its fastest viewer.
    """
    ready = [claim for claim in claims if claim.wait(ahead_s) == 0]
    return min(ready, key=lambda claim: (claim.deadline(), claim.lead_s, claim.name), default=None)


def wait_for_any(claims: Iterable[Claim], ahead_s: float) -> float:
    """Return the seconds until a block may be begun; infinite if only an event can change anything."""
    return min((claim.wait(ahead_s) for claim in claims), default=math.inf)


def count_admitted(waiting: Sequence[float], running: Sequence[float], seats: int | None) -> int:
    """Count how many from the head of the queue may run now.

    Args:
        waiting: Cost of each waiting session, in order: seconds of device time per second of stream.
        running: Cost of each running session.
        seats: Sessions that may run at once; None decides by their costs. One may always run.
    """
    load, count = sum(running), len(running)
    for admitted, cost in enumerate(waiting):
        fits = count < seats if seats is not None else not count or load + cost <= BUSY
        if not fits:
            return admitted
        load, count = load + cost, count + 1
    return len(waiting)


def mean_cost(before: float | None, cost: float) -> float:
    """Return the running mean of costs, in which a new one counts for a tenth."""
    return cost if before is None else 0.9 * before + 0.1 * cost
