"""Intervals: as sure as SciPy says, over clips and not over what they hold, and narrow for what all clips share."""

import numpy as np
import pytest
import scipy.stats

from omniforcing_jax.chime.estimate import estimate, estimate_change


@pytest.mark.parametrize(("percentile", "statistic"), [(None, np.mean), (50, np.median)])
def test_intervals_are_those_of_scipy_where_each_clip_adds_one_value(percentile, statistic):
    values = np.random.default_rng(0).normal(3, 1, 120)
    found = estimate(list(values[:, None]), percentile)
    expected = scipy.stats.bootstrap((values,), statistic, method="percentile", rng=np.random.default_rng(1))
    assert found.value == pytest.approx(statistic(values))
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.1 * width)


def test_values_of_one_clip_are_drawn_together():
    clips = np.random.default_rng(0).normal(0, 1, 60)
    once, often = (estimate(list(np.repeat(clips[:, None], n, axis=1))) for n in (1, 50))
    assert [once.low, once.high] == pytest.approx([often.low, often.high])


def test_a_figure_of_nothing_is_none():
    found = estimate([np.zeros(0), np.zeros(0)])
    assert (found.value, found.low, found.high) == (None, None, None)


def test_a_change_that_all_clips_share_is_surer_than_the_clips_are_alike():
    clips = list(np.random.default_rng(0).normal(0, 5, (40, 3)))
    found = estimate_change(clips, [clip + 1 for clip in clips])
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_clips_that_add_nothing_are_drawn_too():
    parts = [np.zeros(0)] * 5 + [np.ones(2)]
    assert (estimate(parts).low, estimate(parts, 50).high) == (1, 1)
