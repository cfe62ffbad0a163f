"""What stage 1 and causal DMD ask of the generator, whose network is replaced by a formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omniforcing_jax.distill import backward_simulation, causal_dmd
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import Prediction
from omniforcing_jax.nn.attention import NO_PAST
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

FRAMES, AUDIO = 4, 26
BLOCKS = PREFIX.blocks(FRAMES)
SIGMAS = (1.0, 0.75, 0.5, 0.0)
NETWORK = clip_network(tiny.TINY, make_positions(tiny.TINY, clip_block(FRAMES, AUDIO), tiny.GRID))
CONTEXTS = TextContexts(*(jnp.ones((tiny.BATCH, 4, 24)) for _ in "va"), None)
PARAMS = tiny.random_params(tiny.TINY)
STRENGTH = float(PARAMS.video.head.b[0])


def draw(seed):
    return Streams(*tiny.random_latents(tiny.TINY, FRAMES, AUDIO, seed))


def stacked(clips):
    return jax.tree.map(lambda *entries: jnp.stack(entries), *clips)


@pytest.fixture
def simulation(monkeypatch):
    """Stage 1 with a network whose clean estimate is strength * noisy + sigma."""

    def answer(params, model, noisy, sigma, *rest, **options):
        return Streams(*(params.video.head.b[0] * x + sigma[:, None, None] for x in noisy))

    monkeypatch.setattr("omniforcing_jax.distill.clip_network.predict_x0", answer)
    return backward_simulation


def test_the_simulated_inputs_are_those_of_the_few_step_sampler(simulation):
    noise = [draw(i) for i in range(3)]
    found = simulation.simulate(PARAMS, stacked(noise), jnp.asarray(SIGMAS), CONTEXTS, NETWORK)
    for stream in range(2):
        x0 = np.zeros(noise[0][stream].shape)
        for i, sigma in enumerate(SIGMAS[:-1]):
            noisy = (1 - sigma) * x0 + sigma * np.asarray(noise[i][stream], np.float64)
            np.testing.assert_allclose(found[stream][i], noisy, atol=1e-5)
            x0 = STRENGTH * noisy + sigma
        np.testing.assert_allclose(found[stream][-1], x0, atol=1e-5)


def test_a_clip_is_predicted_from_each_samples_own_entry_at_the_level_of_that_entry(simulation):
    trajectory, entry = [draw(i) for i in range(4)], [2, 0]
    arguments = (jnp.asarray(entry), jnp.asarray(SIGMAS), CONTEXTS, NETWORK)
    found = simulation.predict_from(PARAMS, stacked(trajectory), *arguments)
    for stream, (sample, chosen) in itertools.product(range(2), enumerate(entry)):
        expected = STRENGTH * np.asarray(trajectory[chosen][stream][sample]) + SIGMAS[chosen]
        np.testing.assert_allclose(found[stream][sample], expected, atol=1e-6)


def test_no_gradient_flows_through_the_simulation(simulation):
    noise = stacked([draw(i) for i in range(3)])

    def total(params):
        return sum(x.sum() for x in simulation.simulate(params, noise, jnp.asarray(SIGMAS), CONTEXTS, NETWORK))

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(total)(PARAMS)))


def test_a_prediction_pulls_on_the_parameters_and_not_on_what_it_starts_from(simulation):
    trajectory, entry, rest = stacked([draw(i) for i in range(4)]), [2, 1], (jnp.asarray(SIGMAS), CONTEXTS, NETWORK)

    def total(params, trajectory):
        made = simulation.predict_from(params, trajectory, jnp.asarray(entry), *rest)
        return sum(x.sum() for x in made)

    of_params, of_trajectory = jax.grad(total, argnums=(0, 1))(PARAMS, trajectory)
    assert not any(np.any(x) for x in of_trajectory)
    expected = sum(float(x[chosen, sample].sum()) for x in trajectory for sample, chosen in enumerate(entry))
    assert float(of_params.video.head.b[0]) == pytest.approx(expected, rel=1e-4)


def test_the_entry_without_noise_is_never_drawn():
    """Each of the others is left out of 300 draws with odds of 3e-53."""
    drawn = backward_simulation.draw_entry(jax.random.key(0), 300, jnp.asarray(SIGMAS))
    assert set(np.asarray(drawn).tolist()) == {0, 1, 2}


def test_causal_dmd_draws_a_level_for_every_block_of_every_sample_and_never_zero():
    """Of 300 pairs of blocks a third would be equal by chance."""
    levels = np.asarray(causal_dmd.draw_levels(jax.random.key(0), 300, 2, jnp.asarray(SIGMAS)))
    assert set(levels.ravel().tolist()) == set(SIGMAS[:-1])
    assert np.mean(levels[:, 0] == levels[:, 1]) == pytest.approx(1 / 3, abs=0.17)  # 6 spreads


@pytest.fixture
def masked(monkeypatch):
    """Causal DMD with a network whose velocity is half of what it sees, and the views that it was asked under."""
    views = []

    def answer(params, model, noisy, view, text, **options):
        views.append(view)
        return Prediction(jax.tree.map(lambda x: x / 2, noisy), fresh=NO_PAST)

    monkeypatch.setattr(causal_dmd, "predict", answer)

    def run(clean, noise, levels):
        return causal_dmd.predict_masked(PARAMS, clean, noise, levels, CONTEXTS, BLOCKS, NETWORK)

    return run, views


LEVELS = np.array([[0.5, 1.0], [0.75, 0.25]])


def test_in_causal_dmd_the_network_is_told_the_level_of_each_frames_block(masked):
    run, views = masked
    run(draw(0), draw(1), jnp.asarray(LEVELS, jnp.float32))
    for times, first, later in ((views[0].times.video, 1, 3), (views[0].times.audio, 1, 25)):
        np.testing.assert_array_equal(times.main, np.repeat(LEVELS, [first, later], axis=1))


def test_in_causal_dmd_every_token_is_noised_and_read_at_the_level_of_its_block(masked):
    run, _ = masked
    clean, noise = draw(0), draw(1)
    found = run(clean, noise, jnp.asarray(LEVELS, jnp.float32))
    for stream, counts in enumerate(([tiny.TOKENS, 3 * tiny.TOKENS], [1, 25])):
        sigma = np.repeat(LEVELS, counts, axis=1)[..., None]
        noisy = (1 - sigma) * np.asarray(clean[stream]) + sigma * np.asarray(noise[stream])
        np.testing.assert_allclose(found[stream], noisy - sigma * noisy / 2, atol=1e-6)


def test_causal_dmd_pulls_on_no_clean_clip(masked):
    run, _ = masked
    slope = jax.grad(lambda clean: sum(x.sum() for x in run(clean, draw(1), jnp.asarray(LEVELS, jnp.float32))))(draw(0))
    assert not any(np.any(x) for x in slope)
