"""The door: who may come in, under which name of the server, and how often."""

import dataclasses
import secrets
import time

from omniforcing_jax.serve.limits import RefusedError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
BURST_S = 3.0  # seconds of requests that may come at once
CLIENTS = 10_000  # addresses that are remembered


@dataclasses.dataclass
class Door:
    """What is checked before any request is looked at.

    Attributes:
        token: What clients must know; None lets everybody in.
        hosts: Names that requests may address the server by; empty allows all.
        requests_per_s: Requests of one client per second that change something.
    """

    token: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    requests_per_s: float = 10.0
    _rates: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def is_welcome(self, token: str | None) -> bool:
        """Return whether a client that shows this token may come in."""
        return self.token is None or (token is not None and secrets.compare_digest(token.encode(), self.token.encode()))

    def check_rate(self, client: str) -> None:
        """Count a request that changes something.

        Raises:
            RefusedError: The client has made too many.
        """
        rate, now = self.requests_per_s, time.monotonic()
        if len(self._rates) > CLIENTS:
            self._rates.clear()
        left, before = self._rates.get(client, (rate * BURST_S, now))
        left = min(rate * BURST_S, left + (now - before) * rate)
        if left < 1:
            raise RefusedError(429, f"more than {rate:g} requests per second; try again in a moment")
        self._rates[client] = (left - 1, now)
