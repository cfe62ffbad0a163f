"""The trainer on a problem of one matrix: what is resumed equals what was never interrupted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.train import data, gradient, loop, optimiser, state, step

STEPS = 8


def noisy_regression(params, batch, key, extra):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape, jnp.float32)
    error = (batch["x"] + noise) @ params["w"].T - batch["y"]
    return jnp.mean(error**2), ({"seen": extra}, extra + 1.0)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    source = data.ArraySource({"x": x, "y": (x @ rng.normal(size=(8, 8))).astype(np.float32)})
    rule = optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=STEPS, warmup=2))

    def fresh():
        params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)), jnp.float32)}
        return state.create(params, rule, seed=3, extra=jnp.zeros(()))

    def run(folder, steps):
        config = loop.LoopConfig(folder=folder, steps=steps, log_every=1, save_every=3)
        return loop.train(
            config, fresh(), step.make_step(gradient.of_loss(noisy_regression), rule), data.batches(source, 4, seed=5)
        )

    return run


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(problem, tmp_path):
    unbroken = problem(tmp_path / "unbroken", STEPS)
    problem(tmp_path / "resumed", 3)
    problem(tmp_path / "resumed", 4)
    resumed = problem(tmp_path / "resumed", STEPS)
    jax.tree.map(np.testing.assert_array_equal, unbroken, resumed)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("unbroken", "resumed")
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [line["seen"] for line in lines[0]] == list(range(STEPS))


def test_a_checkpoint_of_another_shape_is_refused(problem, tmp_path):
    problem(tmp_path, 3)
    other = state.create(
        {"w": jnp.ones((5, 8))},
        optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=9, warmup=2)),
        0,
    )
    config = loop.LoopConfig(folder=tmp_path, steps=4)
    with pytest.raises(ValueError, match="another configuration"):
        loop.train(config, other, lambda *_: None, None)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(problem, tmp_path):
    rule = optimiser.optimiser(optimiser.OptimiserConfig(learning_rate=0.01, steps=9, warmup=2))
    bad = step.make_step(gradient.of_loss(lambda p, batch, key, extra: (p["w"].sum() / 0.0, ({}, extra))), rule)
    batches = data.batches(data.ArraySource({"x": np.ones((4, 1), np.float32)}), 2, seed=0)
    with pytest.raises(loop.NotFinite, match="loss"):
        loop.train(
            loop.LoopConfig(folder=tmp_path, steps=2, log_every=1),
            state.create({"w": jnp.ones((8, 8))}, rule, 0),
            bad,
            batches,
        )


def test_a_source_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch=4"):
        data.batches(data.ArraySource({"x": np.ones((3, 1))}), 4, seed=0)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    rate = optimiser.learning_rate(optimiser.OptimiserConfig(learning_rate=1.0, steps=100, warmup=10, decay_from=0.5))
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(49), rate(75), rate(100)], [0, 0.5, 1, 1, 0.5, 0], atol=1e-6
    )
