"""How a player fares with fragments that come when they come."""

import pytest

from omniforcing_jax.serve.simulated_viewer import Arrival, play


def arrivals(*times):
    return [Arrival(float(time), float(i), i + 1.0) for i, time in enumerate(times)]


def test_fragments_in_time_are_played_without_a_stall():
    assert play(arrivals(100.5, 101, 102, 103), 100.0, 1.0) == (0.5, 0, 0.0)


def test_a_late_fragment_is_waited_for_and_shifts_the_rest():
    playback = play(arrivals(100, 100.2, 103, 103.5, 104.9), 99.0, 1.0)
    assert (playback.begins_s, playback.underruns) == (1.0, 1)
    assert playback.stalled_s == pytest.approx(1.0)


def test_a_larger_buffer_begins_later_and_bears_more():
    times = (100, 100.2, 103, 103.5)
    playback = play(arrivals(*times), 100.0, 2.0)
    assert playback.begins_s == pytest.approx(0.2)
    assert playback.stalled_s == pytest.approx(0.8)
