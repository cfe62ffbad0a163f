"""How fast tones rise, by where in a block they begin: a block should not be heard to end.

Blocks are a second long, after a first block of one frame. Whether rise times depend on the phase in the block is
tested by permutation: onsets of the same pitch in the same clip exchange their phases at random. Only such onsets are
exchanged, since a pitch or a clip may rise at a pace of its own. What is tested is the tenth of a block that stands
out most. A dependence is found where there is none once in a hundred times: that is `FALSE_ALARM`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from omniforcing_jax.chime.detect import Event
from omniforcing_jax.layout import FRAME_RATE

BLOCK_S, FIRST_S = 1.0, 1 / FRAME_RATE  # length of a block, and of the first one
BINS = 10  # of a block
GRAIN = 0.001  # seconds; rises that differ by less are alike, since by so much the detector may be off
PERMUTATIONS = 1999
FALSE_ALARM = 0.01  # odds that a dependence is found by chance


def phases(times: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return where in its block each time is, in seconds after the block's start."""
    return (times - FIRST_S) % BLOCK_S


def _farthest(ranks: Float[np.ndarray, " n"], bins: Int[np.ndarray, " n"]) -> float:
    """Return how far the mean rank of a bin lies from zero at most, in units of what chance makes of its onsets."""
    sums, counts = np.bincount(bins, ranks, BINS), np.bincount(bins, minlength=BINS)
    return float((np.abs(sums) / np.sqrt(np.maximum(1, counts))).max())


def odds_of_chance(
    rises: Float[np.ndarray, " n"], bins: Int[np.ndarray, " n"], strata: Int[np.ndarray, " n"]
) -> float | None:
    """Return the odds that rises that do not depend on the phase look as if they did; None for fewer than two.

    Args:
        rises: Seconds.
        bins: Phase of each onset, in [0, BINS).
        strata: Onsets with the same number may exchange their phases.
    """
    from scipy.stats import rankdata

    if len(rises) < 2:
        return None
    order = np.argsort(strata, kind="stable")
    ranks, bins, strata = rankdata(np.round(rises / GRAIN))[order], bins[order], strata[order]
    group = np.unique(strata, return_inverse=True)[1]
    ranks = ranks - (np.bincount(group, ranks) / np.bincount(group))[group]
    seen, rng, higher = _farthest(ranks, bins), np.random.default_rng(0), 0
    for _ in range(PERMUTATIONS):  # sorted by group, then at random: a permutation inside each group
        higher += bool(_farthest(ranks[np.lexsort((rng.random(len(ranks)), group))], bins) >= seen - 1e-9)
    return (1 + higher) / (1 + PERMUTATIONS)


def measure_rises(clips: Sequence[Sequence[Event]]) -> dict:
    """Measure the onsets of clips that begin with their first block.

    Returns:
        `rise_ms_p50`: median seconds, in ms, in which a tone rises from a tenth to nine tenths. `by_phase`: for each
        tenth of a block, in ms after its start, how many tones begin to rise there, and the same. `odds_of_chance`: see
        `odds_of_chance`. `depends_on_phase`: whether these are below 0.01; None if nothing can be said.
    """
    known = [(index, event) for index, clip in enumerate(clips) for event in clip if np.isfinite(event.rise_s)]
    rises = np.array([event.rise_s for _, event in known])
    begins = np.array([event.time - event.rise_s / 2 for _, event in known])  # an onset's time is half way up
    bins = (phases(begins) * BINS / BLOCK_S).astype(np.int64)
    odds = odds_of_chance(rises, bins, np.array([index * 100 + event.colour for index, event in known]))
    width = 1e3 * BLOCK_S / BINS
    return {
        "rise_ms_p50": _median_ms(rises),
        "by_phase": [
            {
                "from_ms": place * width,
                "to_ms": (place + 1) * width,
                "onsets": int((bins == place).sum()),
                "rise_ms_p50": _median_ms(rises[bins == place]),
            }
            for place in range(BINS)
        ],
        "odds_of_chance": odds,
        "depends_on_phase": None if odds is None else odds < FALSE_ALARM,
    }


def _median_ms(rises: Float[np.ndarray, " n"]) -> float | None:
    return float(1e3 * np.median(rises)) if len(rises) else None
