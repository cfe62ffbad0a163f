"""Where a viewer is: reckoned, reported, bounded."""

import pytest

from omniforcing_jax.serve.play_clock import REGAINED, SLACK_S, PlayClock


def test_a_viewer_moves_in_real_time_up_to_what_was_sent():
    clock = PlayClock(place_s=0.0, since=100.0, sent_s=0.0)
    assert clock.at(105.0) == 0
    clock.send(2.0, 105.0)
    assert clock.at(106.5) == 1.5
    assert clock.at(120.0) == 2
    assert clock.is_waiting(120.0)


def test_a_wait_is_counted_and_playback_goes_on_from_there():
    clock = PlayClock(place_s=0.0, since=100.0, sent_s=0.0)
    clock.send(1.0, 100.0)
    clock.send(2.0, 104.0)
    assert (clock.stalls, clock.at(104.0), clock.at(104.5)) == (1, 1, 1.5)


def test_a_report_corrects_within_what_can_be_true():
    clock = PlayClock(place_s=0.0, since=0.0, sent_s=0.0)
    clock.send(10.0, 0.0)
    clock.report(0.2, True, 1.0)
    assert clock.at(1.0) == pytest.approx(0.2)
    clock.report(9.9, True, 2.0)
    assert clock.at(2.0) == pytest.approx(1.2 + SLACK_S)
    clock.report(-5.0, True, 2.0)
    assert clock.at(2.0) == 0


def test_a_paused_viewer_stays():
    clock = PlayClock(place_s=0.0, since=0.0, sent_s=0.0)
    clock.send(10.0, 0.0)
    clock.report(1.0, False, 1.0)
    assert clock.at(50.0) == 1
    assert not clock.is_waiting(50.0)


def test_false_reports_cannot_hurry_a_stream_on():
    clock, now = PlayClock(place_s=0.0, since=0.0, sent_s=0.0), 0.0
    clock.send(1000.0, 0.0)
    for _ in range(6000):
        now += 0.01
        clock.report(1000.0, True, now)
    assert clock.at(60.0) <= 60 * (1 + REGAINED) + SLACK_S
    clock.report(0.0, True, now)
    clock.report(1000.0, True, now)
    assert clock.at(now) < 1  # there is no way back by a detour
