"""Bounds of what clients may ask for, and the refusals that say so."""

import dataclasses

from omniforcing_jax.strict_json import require


class RefusedError(Exception):
    """A request that is not met for a reason other than its own content.

    Args:
        status: Status of the HTTP answer.
        message: The reason, in one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server.

    Attributes:
        ahead_s: Seconds that a stream is made ahead of its fastest viewer.
        max_sessions: Streams that are held at once, waiting ones included.
        seats: Streams that run at once; None is as many as can be made in real time.
        per_client: Streams of one client.
        viewers: Viewers of one stream.
        idle_s: Seconds after which a stream that nobody watches is put away.
        history_bytes: Bytes of fragments that are kept of one stream.
        state_bytes: Bytes of saved streams on the disk, beside the one that is being written.
        save_every: Blocks between two saves to the state folder; 0 saves only at the end.
        requests_per_s: Requests of one client per second that change something.
        upload_bytes: Bytes of one upload.
    """

    ahead_s: float = 3.0
    max_sessions: int = 16
    seats: int | None = None
    per_client: int = 8
    viewers: int = 200
    idle_s: float = 600.0
    history_bytes: int = 64_000_000
    state_bytes: int = 40_000_000_000
    save_every: int = 30
    requests_per_s: float = 10.0
    upload_bytes: int = 32_000_000

    def __post_init__(self) -> None:
        require(1 <= self.ahead_s <= 60, "ahead", self.ahead_s, "must be from 1 to 60 seconds")
        require(1 <= self.max_sessions <= 1000, "max-sessions", self.max_sessions, "must be from 1 to 1000")
        require(self.seats is None or self.seats >= 1, "seats", self.seats, "must be at least 1")
        require(self.save_every >= 0, "save-every", self.save_every, "must not be negative")
        require(self.idle_s > 0, "idle", self.idle_s, "must be above 0 seconds")
