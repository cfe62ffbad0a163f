"""Streams without end: nothing jumps at the horizon, nothing is lost beyond it, and minute ten has noise of its own."""

import itertools
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stream import STATIC, keys, student, text

from experiments import endless
from omniforcing_jax import rollout as r
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import FUSED, PREFIX, Layout
from omniforcing_jax.model.positions import shift_phases

TWO_SECONDS = Layout(first_v=1, first_a=1, step_v=6, step_a=50)
MINUTE_TEN = 600


@pytest.mark.parametrize(("layout", "seconds"), [(PREFIX, 5), (PREFIX, 0), (FUSED, 5), (TWO_SECONDS, 8)])
def test_pinned_keys_keep_the_distance_that_they_had_at_the_horizon_and_do_not_jump(layout, seconds):
    sampler = SamplerConfig(sigmas=(1.0, 0.0), layout=layout, horizon_seconds=seconds)
    blocks = range(3 * sampler.horizon_blocks + 3)
    shifts = [sampler.shift_seconds(k) for k in blocks]
    distances = [layout.start_seconds(k) - shift for k, shift in zip(blocks, shifts, strict=True)]
    assert set(shifts[: sampler.horizon_blocks]) == {0}
    assert set(np.diff(shifts[sampler.horizon_blocks - 1 :]).tolist()) <= {layout.step_seconds, layout.first_seconds}
    assert distances[: sampler.horizon_blocks] == [layout.start_seconds(k) for k in range(sampler.horizon_blocks)]
    assert set(distances[sampler.horizon_blocks :]) == {distances[sampler.horizon_blocks - 1]}


@pytest.mark.parametrize("seconds", [1, 3_600, 36_000])
def test_pinned_keys_turn_by_the_exact_angle_however_long_the_stream(seconds):
    shift = shift_phases(STATIC.model, seconds)
    for phases, grid in zip((shift.solid, shift.line), endless.grids(STATIC), strict=True):
        exact = endless.exact_phases(grid, [2 * Fraction(seconds, 20)])
        np.testing.assert_allclose(phases.cos, exact.cos, atol=1e-6, rtol=0)
        np.testing.assert_allclose(phases.sin, exact.sin, atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 3_600, 36_000])
def test_a_block_stands_at_the_exact_angle_however_long_the_stream(k):
    assert endless.angle_error(STATIC, k) < 1e-6


def test_noise_of_a_block_depends_on_its_request_and_its_number_only():
    """A network of zeros hands its noise through, so the block is what was drawn for it."""
    silent = jax.tree.map(jnp.zeros_like, student().transformer)
    prompt, positions = text(rows=2), r.block_positions(STATIC, MINUTE_TEN)
    empty = r.make_cache(STATIC, 2)

    def made(fill, block=MINUTE_TEN):
        cache = jax.tree.map(lambda x: jnp.full_like(x, fill), empty).replace(blocks_done=jnp.int32(block))
        return r.denoise_block(silent, cache, prompt, keys(2), positions, static=STATIC)[0]

    one, other, next_one = made(0.5), made(-2.0), made(0.5, MINUTE_TEN + 1)
    for a, b, c in zip(one, other, next_one, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c)
    drawn = [r.draw_noise(keys(2), jnp.int32(MINUTE_TEN), step, STATIC, positions) for step in range(2)]
    sigma = STATIC.sampler.sigmas[1]
    expected = (1 - sigma) * drawn[0].video + sigma * drawn[1].video
    np.testing.assert_allclose(one.video, expected, atol=1e-5)


@pytest.mark.long
def test_a_short_run_of_the_long_experiment_finds_nothing_wrong():
    figures = endless.stream_long(student(), endless.Arguments(blocks=14, height=None, width=None))
    assert figures["is_finite"]
    assert figures["compiles_after_block2"] == 0
    assert figures["device_bytes_end"] == figures["device_bytes_block10"]
    assert figures["pinned_key_error"] < 1e-6
    assert figures["angle_error"] < 1e-6


def test_a_late_stream_that_takes_half_as_long_again_as_a_new_one_is_found_on_a_machine_that_slows_down(monkeypatch):
    clock, slower = itertools.count(), iter(np.linspace(1, 3, 1000))
    now = [0.0]

    class Stream:
        state = SimpleNamespace(cache=())

        def __init__(self, cost):
            self.cost = cost

        def __next__(self):
            now[0] += self.cost * next(slower) * (5 if next(clock) in (7, 90) else 1)

    monkeypatch.setattr(endless.time, "perf_counter", lambda: now[0])
    assert endless.time_in_turns(Stream(1.5), Stream(1.0)) == pytest.approx(1.5, rel=0.01)


def test_the_long_experiment_would_see_pinned_keys_that_lag_behind(monkeypatch):
    stream, phases = endless.open_stream(student(), endless.PROMPT), endless.shift_phases
    for _ in range(6):
        next(stream)
    monkeypatch.setattr(endless, "shift_phases", lambda model, seconds: phases(model, seconds - 1))
    assert endless.pinned_key_error(stream) > 1e-3
