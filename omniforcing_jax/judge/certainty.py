"""How sure a synchrony figure is: what it would be with other events of the same kind, by bootstrap.

Time is cut half way between one motion event and the next. Each piece adds its share to the correlation at every lag,
and all pieces together add up to it exactly. Drawing pieces with replacement is therefore drawing events.
"""

import numpy as np
from jaxtyping import Float

from omniforcing_jax.judge.synchrony import Correlation, find_peaks

DRAWS = 1000
BATCH = 50  # draws that are worked on at once
FEWEST = 5  # events; fewer say nothing about others of their kind
EVENT = 1.0  # standard deviations of the motion events; a peak above it is an event
APART = 10  # moments; the closest two events
BOUNDS = (2.5, 97.5)  # percentiles of the draws: a 95 % interval


def _pieces(correlation: Correlation) -> Float[np.ndarray, "events lags"]:
    """Return what the time around each motion event adds to the correlation at every lag."""
    from scipy.signal import find_peaks as peaks_of

    seen, heard, steps = correlation.seen, correlation.heard, correlation.steps
    events = peaks_of(seen, height=EVENT, distance=APART)[0]
    if not len(events):
        return np.zeros((0, len(steps)))
    starts = np.concatenate([[0], (events[1:] + events[:-1]) // 2])
    reach = int(steps[-1])
    padded = np.pad(heard, reach)
    shares = [np.add.reduceat(seen * padded[reach + step :][: len(seen)], starts) for step in steps]
    return np.stack(shares, 1) / (len(seen) - np.abs(steps))


def measure_certainty(correlation: Correlation) -> dict[str, float | int | None]:
    """Return 95 % intervals of the lag and of the correlation.

    Returns:
        `events`: number of motion events. `lag_low_ms` and `lag_high_ms`: 19 of 20 draws of as many events have their
        lag between these. `correlation_low` and `correlation_high`: the same for the correlation. The intervals are
        None for fewer than five events.
    """
    pieces = _pieces(correlation)
    names = ("lag_low_ms", "lag_high_ms", "correlation_low", "correlation_high")
    if len(pieces) < FEWEST:
        return {"events": len(pieces), **dict.fromkeys(names)}
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS // BATCH):
        counts = rng.multinomial(len(pieces), np.full(len(pieces), 1 / len(pieces)), BATCH)
        peaks = find_peaks(counts @ pieces)
        found.append((1e3 * peaks.lag_s, peaks.height))
    lags_ms, heights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    bounds = [*np.percentile(lags_ms, BOUNDS), *np.percentile(heights, BOUNDS)]
    return {"events": len(pieces), **dict(zip(names, map(float, bounds), strict=True))}
