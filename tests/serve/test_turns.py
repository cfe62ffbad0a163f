"""Who is next, in plain numbers."""

import math

import pytest

from omniforcing_jax.serve.schedule import Claim, choose, count_admitted, wait_for_any


def claim(name, made_s, played_s, is_played=True):
    return Claim(name=name, made_s=float(made_s), block_s=1.0, played_s=float(played_s), is_played=is_played)


def test_the_session_whose_viewers_run_out_first_is_next():
    assert choose([claim("a", 10, 8.5), claim("b", 90, 89), claim("c", 5, 3)], 3.0).name == "b"


def test_a_played_session_goes_before_one_that_nobody_plays():
    assert choose([claim("a", 0, 0, False), claim("b", 9, 7.2)], 3.0).name == "b"


def test_no_session_is_more_than_ahead_of_its_fastest_viewer():
    assert choose([claim("a", 12, 10)], 3.0).name == "a"
    assert choose([claim("a", 12.1, 10)], 3.0) is None
    assert wait_for_any([claim("a", 12.1, 10)], 3.0) == pytest.approx(0.1)


def test_a_session_that_nobody_plays_sleeps_once_it_is_ahead():
    assert choose([claim("a", 2, 0, False)], 3.0) is not None
    assert wait_for_any([claim("a", 2.5, 0, False)], 3.0) == math.inf


@pytest.mark.parametrize(
    ("waiting", "running", "seats", "expected"),
    [
        ([0.16] * 6, [], None, 4),  # six times real time holds four
        ([0.16], [0.16] * 4, None, 0),
        ([0.16], [0.16] * 3, None, 1),
        ([2.0, 0.1], [], None, 1),  # one may always run, however slow
        ([0.1, 0.1], [0.1], 2, 1),
        ([], [], None, 0),
    ],
)
def test_as_many_run_as_can_be_held_in_real_time(waiting, running, seats, expected):
    assert count_admitted(waiting, running, seats) == expected
