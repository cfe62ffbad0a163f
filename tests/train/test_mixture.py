"""Batches from several sources in turns: by their shares, alike for a seed, resumed exactly."""

from collections import Counter

import numpy as np
import pytest

from omniforcing_jax.train.data import ArraySource, PlacedBatches
from omniforcing_jax.train.mixture import Mixture

SHARES = (0.5, 0.3, 0.2)


class Always:
    """Batches that are all one number."""

    def __init__(self, number):
        self._number = number

    def __next__(self):
        return self._number

    def get_state(self):
        return None

    def set_state(self, position):
        pass


def mixture(seed=0):
    """Rows of three sources, numbered from 0, 100 and 200."""
    sources = [ArraySource({"x": np.arange(7)[:, None] + 100 * i}) for i in range(3)]
    return Mixture([PlacedBatches(source, 2, seed, None) for source in sources], SHARES, seed)


def take(batches, count):
    return [next(batches)["x"][:, 0].tolist() for _ in range(count)]


def test_every_source_is_next_as_often_as_its_share_says():
    count = 2000
    numbered = Mixture([Always(i) for i in range(3)], SHARES, 0)
    found = Counter(next(numbered) for _ in range(count))
    for source, share in enumerate(SHARES):
        # Five standard deviations: outside once in two million seeds, and the seed is fixed.
        assert found[source] == pytest.approx(count * share, abs=5 * (count * share * (1 - share)) ** 0.5)


def test_a_batch_is_of_one_source_and_every_row_comes():
    batches = take(mixture(), 60)
    assert all(len({row // 100 for row in rows}) == 1 for rows in batches)
    assert {row for rows in batches for row in rows} == {i + 100 * j for i in range(7) for j in range(3)}


def test_a_seed_gives_one_order_and_a_position_goes_on_in_it():
    unbroken = take(mixture(), 40)
    assert unbroken == take(mixture(), 40)
    assert unbroken != take(mixture(seed=1), 40)
    first = mixture()
    assert take(first, 17) == unbroken[:17]
    resumed = mixture()
    resumed.set_state(first.get_state())
    assert take(resumed, 23) == unbroken[17:]
