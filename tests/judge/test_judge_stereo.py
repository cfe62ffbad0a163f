"""Levels left and right in dB, how much they change, and whether sound comes from where it is seen."""

import dataclasses

import numpy as np
import pytest
from judged import heard, listen, seen, truth

from omniforcing_jax.judge.sound import RATE
from omniforcing_jax.judge.stereo import measure_stereo


def noise(left=1.0, right=1.0, seconds=2):
    base = np.random.default_rng(0).normal(0, 0.05, (seconds * RATE, 1))
    return base * np.array([left, right])


def test_a_right_channel_of_half_the_size_is_6_db_softer():
    figures = measure_stereo(None, listen(noise(right=0.5)))
    assert figures["level_difference_db"] == pytest.approx(6.02, abs=0.01)
    assert figures["level_spread_db"] == pytest.approx(0, abs=1e-6)
    assert figures["place_correlation"] is None


def test_a_sound_that_goes_from_side_to_side_has_a_spread_and_no_difference():
    sides = np.where((np.arange(2 * RATE) // RATE)[:, None] == [0, 1], 2.0, 1.0)
    figures = measure_stereo(None, listen(noise() * sides))
    assert figures["level_difference_db"] == pytest.approx(0, abs=0.3)
    assert figures["level_spread_db"] == pytest.approx(6.02, abs=0.1)


def test_what_has_not_two_channels_has_no_sides():
    assert measure_stereo(None, listen(noise()[:, :1])) is None
    assert measure_stereo(None, listen(np.tile(noise()[:, :1], 6))) is None


def test_tones_come_from_where_balls_hit_and_from_the_other_side_if_swapped():
    right, swapped = (measure_stereo(seen(), listen(truth()[1][:, ::order]))["place_correlation"] for order in (1, -1))
    assert right > 0.8
    assert swapped == pytest.approx(-right, abs=0.01)


def test_a_sound_that_stays_in_the_middle_has_no_place():
    middle = dataclasses.replace(heard(), sides=np.repeat(heard().sides.mean(1, keepdims=True), 2, axis=1))
    assert measure_stereo(seen(), middle)["place_correlation"] is None
