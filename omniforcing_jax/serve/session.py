"""A session: a source of chunks, what was made of it, who watches, and what was asked of it.

The engine's lock guards all of it, except for the history, which has its own.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from omniforcing_jax.serve.fragments import Fragment, Fragmenter
from omniforcing_jax.serve.history import Cursor, History
from omniforcing_jax.serve.messages import CAMERA, PROMPT, Receipt, StreamRequestBody, StreamView
from omniforcing_jax.serve.play_clock import PlayClock
from omniforcing_jax.serve.schedule import Claim
from omniforcing_jax.serve.studio import Source, StartMedia
from omniforcing_jax.stream.mp4 import Overlapped

QUEUED, PREPARING, RUNNING, ENDED, FAILED, SAVED = "queued", "preparing", "running", "ended", "failed", "saved"
PAUSED, ASLEEP = "paused", "asleep"  # of a running session, as views have it
OVER = (ENDED, FAILED)
RECEIPTS, SHOWN_RECEIPTS = 100, 20  # kept per session; in a view
CAMERA_RECEIPTS = 8  # of these: a page asks again every few seconds while a key is held
WAITING_CHANGES = 16  # of the prompt, per session


@dataclasses.dataclass(eq=False)
class Viewer:
    """Somebody who watches a session, and how far."""

    clock: PlayClock
    cursor: Cursor
    wake: Callable[[], None]


@dataclasses.dataclass
class Change:
    """A change of prompt or camera that was received.

    Attributes:
        receipt: Its state, as it is told.
        asked: When it came.
        apply: Tells the source.
        at: Stream second from which it applies; None is the next block.
        needs: What must be done before; None needs nothing.
        is_taken: Whether the device's thread has it: it can no longer be replaced.
        block: First block under it, once the source has been told.
    """

    receipt: Receipt
    asked: float
    apply: Callable[[Source], None]
    at: float | None = None
    needs: "Future[Any] | None" = None
    is_taken: bool = False
    block: int | None = None

    def is_due(self, made_s: float) -> bool:
        """Return whether it may be applied at this border."""
        return (self.at is None or self.at <= made_s) and (self.needs is None or self.needs.done())


@dataclasses.dataclass(eq=False)
class Session:
    """All that belongs to one stream on the server.

    Attributes:
        id: Its name in addresses.
        body: The request.
        client: Whose it is, for limits.
        created: When it was asked for.
        size: Height and width of its picture in pixels.
        history: Its fragments.
        start: What it begins with.
        unwatched_since: When the last viewer left, or when it was made.
        left_s: Where the last viewer left.
        todo: What is to be done at the next block border: fork, save.
    """

    id: str
    body: StreamRequestBody
    client: str
    created: float
    size: tuple[int, int]
    history: History
    start: StartMedia | None = None
    state: str = QUEUED
    message: str = ""
    prompt: str = ""
    camera: str | None = None
    source: Source | None = None
    fragmenter: Fragmenter | None = None
    pipe: Overlapped | None = None
    viewers: list[Viewer] = dataclasses.field(default_factory=list)
    unwatched_since: float = 0.0
    left_s: float = 0.0
    is_seated: bool = False
    is_paused: bool = False
    is_at_work: bool = False
    made_s: float = 0.0
    block: int = 0
    cost: float | None = None
    first_chunk_s: float | None = None
    underruns: int = 0
    fragments: int = 0
    frame: np.ndarray | None = None
    changes: list[Change] = dataclasses.field(default_factory=list)
    receipts: deque[Receipt] = dataclasses.field(default_factory=lambda: deque(maxlen=RECEIPTS))
    todo: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    saved_block: int = 0
    version: int = 0
    shown: tuple[int, float, str] | None = None

    def played_s(self, now: float) -> float:
        """Return where the fastest viewer is, or where the last one left."""
        return max([self.left_s, *(viewer.clock.at(now) for viewer in self.viewers)])

    def is_played(self) -> bool:
        """Return whether anybody is playing it."""
        return any(viewer.clock.is_playing for viewer in self.viewers)

    def can_go_on(self) -> bool:
        """Return whether its next block could be made, as far as it is concerned."""
        is_ready = self.state == RUNNING and self.source is not None and self.is_seated
        return is_ready and not self.is_paused and not self.is_at_work

    def claim(self, block_s: float, now: float) -> Claim:
        """Return what the scheduler needs to know."""
        return Claim(
            name=self.id,
            made_s=self.made_s,
            block_s=block_s,
            played_s=self.played_s(now),
            is_played=self.is_played(),
        )

    def waiting(self, kind: str) -> list[Change]:
        """Return the changes of a kind that nobody has taken yet."""
        return [each for each in self.changes if each.receipt.kind == kind and not each.is_taken]

    def replace(self, changes: list[Change]) -> None:
        """Let later changes take the place of these."""
        for change in changes:
            self.settle(change, dataclasses.replace(change.receipt, stage="replaced"))

    def take_changes(self) -> list[Change]:
        """Take the changes that are due at this border; of each kind the last one counts, others are replaced."""
        taken: list[Change] = []
        for kind in (PROMPT, CAMERA):
            due = list(itertools.takewhile(lambda change: change.is_due(self.made_s), self.waiting(kind)))
            self.replace(due[:-1])
            taken += due[-1:]
        for change in taken:
            change.is_taken = True
        return taken

    def note(self, change: Change, block: int) -> None:
        """Note that the source was told of a change before this block."""
        change.block = block
        if change.receipt.kind == CAMERA:
            self.camera = change.receipt.camera
        else:
            self.prompt = change.receipt.prompt or ""

    def settle(self, change: Change, receipt: Receipt) -> None:
        """Note the last word on a change."""
        self.changes.remove(change)
        self.replace_receipt(receipt)

    def bound_receipts(self, kind: str, most: int) -> None:
        """Keep only the newest receipts of a kind; many of them would push others out."""
        for receipt in [each for each in self.receipts if each.kind == kind][:-most]:
            self.receipts.remove(receipt)

    def replace_receipt(self, receipt: Receipt) -> None:
        """Put a receipt in the place of the earlier one of the same change."""
        for at, old in enumerate(self.receipts):
            if old.id == receipt.id:
                self.receipts[at] = receipt
                break
        else:
            self.receipts.append(receipt)
        self.tell()

    def publish(self, fragment: Fragment, now: float) -> None:
        """Take a fragment from the encoder: keep it, settle the changes that it shows, and tell the viewers."""
        at_the_edge = [each for each in self.viewers if each.clock.sent_s > 0 and each.cursor.number == fragment.number]
        self.underruns += sum(viewer.clock.is_waiting(now) for viewer in at_the_edge)
        self.history.add(fragment)
        self.fragments = fragment.number + 1
        if self.first_chunk_s is None:
            self.first_chunk_s = now - self.created
        starts = {mark.index: mark.start_s for mark in fragment.blocks}
        for change in [change for change in self.changes if change.block in starts]:
            second, delay = starts[change.block or 0], round(now - change.asked, 3)
            done = dataclasses.replace(
                change.receipt, stage="applied", block=change.block, second=second, delay_s=delay
            )
            self.settle(change, done)
        self._wake()

    def tell(self) -> None:
        """Let everybody who watches see how the stream is now."""
        self.version += 1
        self._wake()

    def _wake(self) -> None:
        for viewer in self.viewers:
            viewer.wake()

    def view(self, place: int | None, now: float, block_s: float) -> StreamView:
        """Return the session as viewers see it."""
        oldest, cost = self.history.oldest(), self.cost
        return StreamView(
            id=self.id,
            state=self._shown_state(block_s, now),
            place=place,
            message=self.message,
            prompt=self.prompt,
            camera=self.camera,
            seed=self.body.seed,
            seconds=self.body.seconds,
            height=self.size[0],
            width=self.size[1],
            mime=None if self.fragmenter is None else self.fragmenter.mime,
            block=self.block,
            made_s=round(self.made_s, 3),
            played_s=round(self.played_s(now), 3),
            kept_s=0.0 if oldest is None else round(oldest.start_s, 3),
            viewers=len(self.viewers),
            real_time_factor=round(1 / cost, 2) if cost else None,
            first_chunk_s=None if self.first_chunk_s is None else round(self.first_chunk_s, 3),
            underruns=self.underruns,
            receipts=tuple(self.receipts)[-SHOWN_RECEIPTS:],
        )

    def _shown_state(self, block_s: float, now: float) -> str:
        if self.state != RUNNING:
            return self.state
        if self.is_paused:
            return PAUSED
        return RUNNING if self.is_played() or not self.made_s else ASLEEP
