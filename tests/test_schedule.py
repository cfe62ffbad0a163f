import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import LTXEulerAncestralRFScheduler

from omniforcing_jax.schedule import (
    DISTILLED,
    add_noise,
    ancestral_shares,
    euler_step,
    fresh_shares,
    ltx2_schedule,
    renew,
    renewing_step,
    sigma_lookup,
    snap,
    to_velocity,
    to_x0,
)


def draw(seed, shape=(2, 3, 4), dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def test_eight_steps_are_the_published_ones():
    expected = [1, 0.9657117, 0.9218748, 0.8638561, 0.7834455, 0.6645793, 0.4710027, 0.1, 0]
    np.testing.assert_allclose(ltx2_schedule(8), expected, atol=1e-6)


def test_the_schedule_shifts_with_the_token_count():
    expected = [1, 0.9739133, 0.9398331, 0.8934217, 0.8265072, 0.7216511, 0.5338148, 0.1, 0]
    np.testing.assert_allclose(ltx2_schedule(8, tokens=6144), expected, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 40, 1000])
def test_every_schedule_falls_from_one_to_zero(steps):
    schedule = ltx2_schedule(steps)
    assert len(schedule) == steps + 1
    assert (schedule[0], schedule[-1]) == (1, 0)
    assert (np.diff(schedule) < 0).all()


def test_step_lists_snap_to_the_forty_step_schedule():
    indices, sigmas = snap([1000, 909, 725, 421, 0], ltx2_schedule(40))
    assert indices == (0, 17, 29, 36, 40)
    np.testing.assert_allclose(sigmas, [1, 0.906229, 0.726524, 0.420719, 0], atol=1e-6)


def test_the_lookup_starts_clean_and_ends_in_noise():
    lookup = sigma_lookup()
    assert lookup.shape == (1001,)
    np.testing.assert_allclose(lookup[[0, 20, 500, 980, 1000]], [0, 0.2171, 0.8966, 0.9976, 1], atol=1e-4)


def test_noising_interpolates_with_one_level_per_token(strict):
    x0, noise, sigma = draw(0), draw(1), jnp.array([[0.0, 0.5, 1.0], [1.0, 0.25, 0.0]])
    noisy = add_noise(x0, noise, sigma)
    np.testing.assert_array_equal(noisy[0, 0], x0[0, 0])
    np.testing.assert_array_equal(noisy[0, 2], noise[0, 2])
    np.testing.assert_allclose(noisy[1, 1], 0.75 * x0[1, 1] + 0.25 * noise[1, 1], atol=1e-6)


def test_noising_keeps_the_type_but_not_the_rounding_of_low_precision(strict):
    x0, noise = draw(0, dtype=jnp.bfloat16), draw(1, dtype=jnp.bfloat16)
    noisy = add_noise(x0, noise, 0.726524)
    assert noisy.dtype == jnp.bfloat16
    exact = (1 - 0.726524) * np.asarray(x0, np.float64) + 0.726524 * np.asarray(noise, np.float64)
    np.testing.assert_allclose(np.asarray(noisy, np.float64), exact, rtol=2**-8)


def test_velocity_and_x0_are_inverse(strict):
    x, x0, sigma = draw(0), draw(1), jnp.array([0.3, 0.9])
    np.testing.assert_allclose(to_x0(x, to_velocity(x, x0, sigma), sigma), x0, atol=1e-6)


def test_velocity_is_noise_minus_x0(strict):
    x0, noise, sigma = draw(0), draw(1), jnp.array([0.3, 0.9])
    np.testing.assert_allclose(to_velocity(add_noise(x0, noise, sigma), x0, sigma), noise - x0, atol=2e-6)


def test_an_euler_step_moves_along_the_velocity(strict):
    x, x0 = draw(0), draw(1)
    expected = x + to_velocity(x, x0, 0.8) * (0.5 - 0.8)
    np.testing.assert_allclose(euler_step(x, x0, 0.8, 0.5), expected, atol=1e-6)


def test_the_last_euler_step_lands_exactly_on_x0(strict):
    x, x0 = draw(0), draw(1)
    np.testing.assert_array_equal(euler_step(x, x0, 0.1, 0.0), x0)


def test_euler_carries_all_noise_and_infinity_none():
    sigmas = ltx2_schedule(6)
    np.testing.assert_array_equal(fresh_shares(sigmas, 0.0), [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(fresh_shares(sigmas, math.inf), np.ones(6))


def test_backwards_diffusion_draws_what_a_walk_between_both_levels_adds():
    sigmas = (1.0, 0.9, 0.6, 0.2, 0.0)
    shares = fresh_shares(sigmas, 1.0)
    spread = [s / (1 - s) for s in sigmas[1:-1]]  # noise over signal
    for share, before, after in zip(shares[2:], spread[:-1], spread[1:], strict=True):
        carried = after**2 / before  # of the noise before, what a bridge from `before` to 0 keeps at `after`
        assert share**2 * after**2 == pytest.approx(after**2 - carried**2, rel=1e-5)
    assert shares[1] == 1
    assert fresh_shares(sigmas, 0.5)[2:] == pytest.approx(0.5 * shares[2:])
    assert fresh_shares(sigmas, 5.0).max() == 1


@pytest.mark.parametrize("eta", [1.0, 0.3, 0.0])
def test_every_ancestral_step_is_diffusers_with_the_same_noise(eta, strict):
    peer, generator, rng = LTXEulerAncestralRFScheduler(eta=eta), torch.Generator(), np.random.default_rng(5)
    peer.set_timesteps(sigmas=list(DISTILLED))
    peer.sigmas = torch.tensor(DISTILLED, dtype=torch.float64)  # in float32 its coefficients are off by up to 9e-6
    shares, x = (*ancestral_shares(DISTILLED, eta), 0.0), rng.normal(size=(4, 5, 6)).astype(np.float32)
    for step, timestep in enumerate(peer.timesteps[:-1]):
        velocity, sigmas = rng.normal(size=x.shape).astype(np.float32), DISTILLED[step : step + 2]
        fresh = torch.randn(x.shape, generator=generator.manual_seed(step)).numpy()
        (theirs,) = peer.step(
            torch.from_numpy(velocity), timestep, torch.from_numpy(x), generator.manual_seed(step), return_dict=False
        )
        clean = to_x0(jnp.asarray(x), jnp.asarray(velocity), sigmas[0])
        ours = renewing_step(jnp.asarray(x), clean, jnp.asarray(fresh), float(shares[step + 1]), *sigmas)
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
        x = theirs.numpy()


def test_renewed_noise_keeps_its_variance():
    carried, fresh = draw(0, (100_000,)), draw(1, (100_000,))
    for share in (0.0, 0.3, 1.0):
        mixed = renew(carried, fresh, share)
        assert float(mixed.std()) == pytest.approx(1, abs=0.02)
        assert float(jnp.mean(mixed * fresh)) == pytest.approx(share, abs=0.02)
    np.testing.assert_array_equal(renew(carried, fresh, 0.0), carried)
