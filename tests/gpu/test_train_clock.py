"""Training against the clock: the rate falls when it is told to, and the weights are a folder in one file."""

import dataclasses
import json
import tarfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.chime.world import recipe
from experiments.gpu import train
from experiments.gpu.falling import held_rates, let_fall
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.train import state
from omniforcing_jax.train.optimiser import OptimiserConfig, optimiser

RATES = OptimiserConfig(kind="adam", learning_rate=0.1, steps=10, warmup=2, decay_from=0.5)


def walk(rule, steps, between=lambda trainer, step: trainer):
    """Weights after each update by gradients that change."""
    trainer, seen, advance = state.create({"w": jnp.ones((3, 3))}, rule, 0), [], jax.jit(rule.update)
    for step in range(steps):
        trainer = between(trainer, step)
        gradients = {"w": jnp.full((3, 3), 1.0 + step)}
        updates, after = advance(gradients, trainer.opt_state, trainer.params)
        trainer = dataclasses.replace(trainer, opt_state=after, params=optax.apply_updates(trainer.params, updates))
        seen.append(np.asarray(trainer.params["w"][0, 0]))
    return seen


def test_a_rate_that_is_told_to_fall_is_the_recipes():
    late = walk(held_rates(RATES), 10, lambda trainer, step: let_fall(trainer, 5) if step == 5 else trainer)
    np.testing.assert_allclose(late, walk(optimiser(RATES), 10), rtol=1e-6)


def test_until_then_it_stays():
    held, whole = (walk(rule, 8) for rule in (held_rates(RATES), optimiser(dataclasses.replace(RATES, decay_from=1.0))))
    np.testing.assert_allclose(held, whole, rtol=1e-6)


def test_a_recipe_that_ends_at_another_rate_is_refused():
    with pytest.raises(ValueError, match="last_rate"):
        held_rates(dataclasses.replace(RATES, last_rate=0.01))


def test_a_pace_is_the_median_step_without_the_compilation():
    pace = train.Pace()
    pace.times = [pace.begun + at for at in (9.0, 9.5, 9.6, 9.7, 12.0)]
    assert pace.compile_s == pytest.approx(9)
    assert pace.step_s == pytest.approx(0.1)
    assert pace.figures(4)["clips_per_s"] == pytest.approx(40)


def test_a_training_ends_in_time_with_its_weights_after_each_part(tmp_path, monkeypatch):
    written, reports = [], []
    monkeypatch.setattr(
        train, "write_weights", lambda path, _, params: written.append((path.name, float(params["w"].max())))
    )

    def loss(params, batch, key):
        value = jnp.mean((params["w"] - batch["ids"].mean()) ** 2)
        return value, {"video": value}

    training = train.Training(
        name="teacher",
        params={"w": jnp.ones((3, 3))},
        loss=loss,
        optimiser=dataclasses.replace(RATES, steps=1000, decay_from=0.2),
        rows={"ids": np.zeros((8, 2), np.float32)},
        batch=4,
        seed=0,
        pipeline=presets.CHIME_CLIP,
    )
    begun = time.monotonic()
    arguments = train.Arguments(json=tmp_path / "train.json", folder=tmp_path)
    monkeypatch.setattr(train.Pace, "step_s", 0.5)  # so that few steps are left
    train.train_for(training, 15.0, arguments, reports.append)
    assert time.monotonic() - begun < 15
    assert [name for name, _ in written] == ["teacher.tar"] * 3
    assert all(weight < 1 for _, weight in written)
    last = reports[-1]
    assert last["steps"] > last["curve"][0]["step"]
    assert [line["step"] for line in last["curve"]] == sorted(line["step"] for line in last["curve"])
    assert train.table({"teacher": last}).splitlines()[2].startswith("| teacher | 4 |")
    json.dumps(last)


def test_weights_come_back_as_a_folder_in_one_small_file(tmp_path):
    model = dataclasses.replace(presets.CHIME, layers=1)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape), spec.abstract(transformer_spec(model)))
    params = jax.tree.map(np.float32, drawn)
    path = tmp_path / "student.tar"
    train.write_weights(path, dataclasses.replace(recipe.student_config(), model=model), params)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    read = recipe.read_transformer(Path(tmp_path / "student"), model)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(read), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=2e-3)
