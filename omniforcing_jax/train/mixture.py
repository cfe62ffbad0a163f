"""Batches from several sources in turns: trajectories and real clips, or clips of several sizes and lengths.

All rows of a batch are of one source, so they have one shape, and each source costs one compiled program. Which source
is next depends on the seed and on the number of the step alone: all processes agree, and a resumed run goes on as an
unbroken one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniforcing_jax.train.loop import Batches


class Mixture:
    """Batches of several iterators, each with its share.

    Args:
        parts: The iterators.
        shares: How often each of them is next, in any unit; all positive.
        seed: Of the order.
    """

    def __init__(self, parts: Sequence[Batches], shares: Sequence[float], seed: int) -> None:
        self._parts, self._seed, self._step = list(parts), seed, 0
        self._shares = np.asarray(shares, np.float64) / np.sum(shares)

    def __next__(self) -> Any:
        """Make the next batch."""
        part = np.random.default_rng((self._seed, self._step)).choice(len(self._parts), p=self._shares)
        self._step += 1
        return next(self._parts[part])

    def get_state(self) -> Any:
        """Return the position: the number of batches so far, and where each part is."""
        return {"step": self._step, "parts": [part.get_state() for part in self._parts]}

    def set_state(self, position: Any) -> None:
        """Go to a position."""
        self._step = position["step"]
        for part, place in zip(self._parts, position["parts"], strict=True):
            part.set_state(place)
