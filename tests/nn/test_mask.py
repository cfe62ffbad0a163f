import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniforcing_jax.nn.mask import (
    HIDDEN,
    TokenSpan,
    banded_mask,
    context_mask,
    dense_mask,
    log_ratio_scale,
    visible,
    visible_tokens,
)


def parse(picture):
    return np.array([[c == "x" for c in row.split()] for row in picture.strip().splitlines()])


def spans(lengths, sinks=0, pin=False):
    ends = np.cumsum([sinks, *lengths]).tolist()
    made = [TokenSpan(a, b, k, pin and k == 0) for k, (a, b) in enumerate(itertools.pairwise(ends))]
    return [TokenSpan(0, sinks, 0, True), *made] if sinks else made


def covered(mask, queries, keys):
    """Write bands out as a mask."""
    shown = np.zeros((queries, keys), bool)
    for band in mask.bands:
        for start, stop in band.fresh:
            assert not shown[slice(*band.queries), start:stop].any()
            shown[slice(*band.queries), start:stop] = True
    return shown


def test_the_rule_hides_the_future_and_the_empty():
    seen = visible(np.array([0, 1, 2]), np.array([0, 1, 2, -1]), np.zeros(4, bool), 3)
    np.testing.assert_array_equal(seen, parse("x . . .\nx x . .\nx x x ."))


def test_a_window_counts_the_current_block():
    seen = visible(np.arange(4), np.arange(4), np.zeros(4, bool), 2)
    np.testing.assert_array_equal(seen, parse("x . . .\nx x . .\n. x x .\n. . x x"))


def test_a_pinned_block_stays_visible():
    seen = visible(np.arange(4), np.arange(4), np.arange(4) == 0, 1)
    np.testing.assert_array_equal(seen, parse("x . . .\nx x . .\nx . x .\nx . . x"))


def test_sinks_are_seen_by_all_and_see_block_0():
    queries = keys = spans([1, 2, 2], sinks=2)
    picture = """
        x x x . . . .
        x x x . . . .
        x x x . . . .
        x x x x x . .
        x x x x x . .
        x x . x x x x
        x x . x x x x
    """
    np.testing.assert_array_equal(visible_tokens(queries, keys, 2), parse(picture))


def test_streams_of_different_rates_share_one_table_of_blocks():
    np.testing.assert_array_equal(
        visible_tokens(spans([1, 2]), spans([2, 1], sinks=1), 9), parse("x x x .\nx x x x\nx x x x")
    )


@settings(deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=7),
    sinks=st.integers(0, 3),
    window=st.integers(1, 8),
    pin=st.booleans(),
)
def test_static_ranges_cover_exactly_what_the_mask_shows(lengths, sinks, window, pin):
    video, audio = spans([v for v, _ in lengths], 0, pin), spans([a for _, a in lengths], sinks, pin)
    for queries, keys in ((video, video), (audio, audio), (video, audio), (audio, video)):
        expected = visible_tokens(queries, keys, window)
        np.testing.assert_array_equal(covered(banded_mask(queries, keys, window), *expected.shape), expected)


def test_the_whole_past_is_one_range_per_block():
    mask = banded_mask(spans([1, 2, 2], 2), spans([1, 2, 2], 2), 3)
    assert [(b.queries, b.fresh) for b in mask.bands] == [
        ((0, 3), ((0, 3),)),
        ((3, 5), ((0, 5),)),
        ((5, 7), ((0, 7),)),
    ]


def test_on_context_a_block_is_fresh_and_its_past_is_past():
    mask = context_mask(spans([1, 2, 2], 2), spans([1, 2, 2], 2), 2)
    assert [(b.fresh, b.past) for b in mask.bands] == [
        (((0, 3),), ()),
        (((3, 5),), ((0, 3),)),
        (((5, 7),), ((0, 2), (3, 5))),
    ]


def test_a_dense_mask_adds_nothing_where_a_key_may_be_seen():
    bias = np.asarray(dense_mask(spans([1, 1]), spans([1, 1]), 9).bias)
    np.testing.assert_array_equal(bias, np.array([[[[0, HIDDEN], [0, 0]]]], np.float32))


@pytest.mark.parametrize("sinks", [0, 4])
def test_the_log_ratio_counts_visible_keys_with_sinks(sinks):
    keys = spans([1, 25, 25], sinks)
    scale = np.asarray(log_ratio_scale(spans([6, 18, 18]), keys, 9))
    expected = np.log1p(sinks + np.repeat([1, 26, 51], [6, 18, 18])) / np.log1p(51 + sinks)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
