"""Whether the rise of tones depends on their phase in a block: found if it does, else as seldom as is said."""

import numpy as np
import pytest

from omniforcing_jax.chime import rise
from omniforcing_jax.chime.detect import Event
from omniforcing_jax.chime.rise import BINS, FIRST_S, measure_rises, odds_of_chance


def onsets(seed, slow_ms=0.0, clips=20):
    """Return onsets of clips of 5 s; those that begin in the last tenth of a block rise for longer."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(clips):
        times, rises = rng.uniform(0.2, 4.8, 12), rng.normal(18, 2, 12)
        rises = (rises + slow_ms * (rise.phases(times) >= 0.9)) / 1e3
        events = zip(times + rises / 2, rises, rng.integers(0, 2, 12), strict=True)
        found.append([Event(time=t, colour=int(c), strength=1.0, rise_s=r) for t, r, c in events])
    return found


def test_blocks_begin_after_the_first_frame():
    assert rise.phases(np.array([FIRST_S, FIRST_S + 0.97, 3.0])) == pytest.approx([0, 0.97, 1 - FIRST_S])


def test_tones_that_swell_at_the_end_of_a_block_are_found():
    figures = measure_rises(onsets(0, slow_ms=8))
    assert figures["depends_on_phase"]
    slowest = max(figures["by_phase"], key=lambda place: place["rise_ms_p50"])
    assert slowest["from_ms"] == 900
    assert sum(place["onsets"] for place in figures["by_phase"]) == 240


def test_false_alarms_are_as_rare_as_is_said(monkeypatch):
    monkeypatch.setattr(rise, "PERMUTATIONS", 199)
    odds = np.array([measure_rises(onsets(seed, clips=6))["odds_of_chance"] for seed in range(60)])
    # If odds are even from 0 to 1, more than 3 of 60 below 0.01 come once in 300 runs; the seeds are fixed.
    assert (odds < 0.01).sum() <= 3
    assert 6 <= (odds < 0.25).sum() <= 24


def test_a_pitch_that_rises_slowly_wherever_it_is_struck_is_no_dependence():
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], 100)
    bins = np.where(strata, rng.integers(5, 10, 200), rng.integers(0, 5, 200))
    rises = rng.normal(18, 1, 200) + 10 * strata
    assert odds_of_chance(rises, bins, strata) > 0.05
    assert odds_of_chance(rises, bins, np.zeros(200, int)) < 0.01


def test_of_one_onset_nothing_is_said():
    figures = measure_rises([[Event(time=1.0, colour=0, strength=1.0, rise_s=0.02)], []])
    assert figures["depends_on_phase"] is None
    assert [place["onsets"] for place in figures["by_phase"]].count(0) == BINS - 1
