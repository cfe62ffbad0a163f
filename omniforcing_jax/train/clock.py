"""When a checkpoint is due by time, whatever its step is. Several processes agree on it."""

import math
import time

from omniforcing_jax.parallel import distributed


class Clock:
    """Says when a checkpoint is due by time, the same to all processes."""

    def __init__(self, minutes: float | None):
        """Begin now; None is never due."""
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._saved = self._looked = time.monotonic()

    def is_due(self) -> bool:
        """Whether the newest checkpoint would be too old at the next look, if that takes as long as this one did."""
        now = time.monotonic()
        late = now - self._saved + (now - self._looked) > self._seconds
        self._looked = now
        return distributed.agree(late)

    def saved(self) -> None:
        """Begin anew after a checkpoint."""
        self._saved = time.monotonic()
