"""How sure a figure is that is pooled over clips: 95 % intervals by bootstrap.

A figure is the mean or a percentile of values, of which each clip adds some. Clips are drawn again with replacement,
each with all that belongs to it. The same clips are drawn for every figure of as many clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DRAWS = 1000
BOUNDS = (2.5, 97.5)  # percentiles of the draws

Values = Float[np.ndarray, " _"]  # of one clip; others have other lengths


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 95 % interval; None where nothing was pooled."""

    value: float | None
    low: float | None
    high: float | None


def pool(parts: Sequence[Values], percentile: int | None = None) -> float | None:
    """Return the mean, or a percentile, of what all clips add; None for nothing."""
    pooled = np.concatenate(parts)
    if not len(pooled):
        return None
    return float(pooled.mean() if percentile is None else np.percentile(pooled, percentile))


def estimate(parts: Sequence[Values], percentile: int | None = None) -> Estimate:
    """Pool what clips add to a figure, and draw as many clips again and again."""
    return _bound(pool(parts, percentile), _draw(parts, percentile))


def estimate_change(before: Sequence[Values], after: Sequence[Values], percentile: int | None = None) -> Estimate:
    """Return by how much a figure of the same clips changes from one part of them to another."""
    first, last = pool(before, percentile), pool(after, percentile)
    change = None if first is None or last is None else last - first
    return _bound(change, _draw(after, percentile) - _draw(before, percentile))


def _bound(value: float | None, drawn: Float[np.ndarray, " draws"]) -> Estimate:
    if value is None:
        return Estimate(value=None, low=None, high=None)
    low, high = np.percentile(drawn[np.isfinite(drawn)], BOUNDS)
    return Estimate(value=value, low=float(low), high=float(high))


def _draw(parts: Sequence[Values], percentile: int | None) -> Float[np.ndarray, " draws"]:
    """Return the figure of each draw; NaN where the clips drawn add nothing."""
    counts = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), DRAWS)
    if percentile is None:
        sums, lengths = (np.array([f(part) for part in parts], np.float64) for f in (np.sum, len))
        drawn = counts @ lengths
        return np.where(drawn > 0, counts @ sums, np.nan) / np.maximum(1, drawn)
    pooled, owners = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    repeats = (each[owners] for each in counts)
    return np.array([np.percentile(np.repeat(pooled, n), percentile) if n.any() else np.nan for n in repeats])
