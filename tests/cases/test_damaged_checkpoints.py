"""Checkpoints that were damaged, and runs that share a folder: never other weights, never half a run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.io import lock
from omniforcing_jax.train import checksums, loop
from omniforcing_jax.train.state import TrainState
from omniforcing_jax.train.step import Report


class Batches:
    """Random matrices; their position is a number."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return np.random.default_rng(self.position).normal(size=(64, 64)).astype(np.float32)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, position):
        self.position = position["position"]


def walk(state, batch):
    weights = jnp.asarray(np.asarray(state.params["w"]) * np.float32(1.001) + batch)
    report = Report(metrics={"mean": weights.mean()}, finite=np.array([True]), checked=("mean",))
    return state.replace(step=state.step + 1, params={"w": weights}), report


def train(folder, steps=8, hooks=()):
    config = loop.LoopConfig(folder=folder, steps=steps, log_every=2, save_every=4)
    key = jax.random.key_data(jax.random.key(0))
    weights = {"w": jnp.zeros((64, 64))}
    start = TrainState(step=jnp.int32(0), params=weights, opt_state=(), ema=None, extra=None, key=key)
    return np.asarray(loop.train(config, start, walk, Batches(), hooks=hooks, describe={"a": 1}).params["w"])


def read_metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["mean"]) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 8 steps with checkpoints at 4 and 8, and the weights that 12 steps without a break would give."""
    folders = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("unbroken")
    train(folders[0])
    return folders[0], train(folders[1], 12), folders[1]


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(checkpoint):
    path = largest_file(checkpoint / "state")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(checkpoint):
    path = largest_file(checkpoint / "state")
    path.write_bytes(path.read_bytes()[:-100])


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def without_state(checkpoint):
    shutil.rmtree(checkpoint / "state")


def without_a_file(checkpoint):
    largest_file(checkpoint / "state").unlink()


def with_broken_checksums(checkpoint):
    (checkpoint / checksums.NAME).write_text("[" * 100_000)


def without_checksums_and_metadata(checkpoint):
    """As older versions wrote it, and damaged so that only Orbax can tell."""
    (checkpoint / checksums.NAME).unlink()
    for path in (checkpoint / "state").glob("_*"):
        path.write_text("{")


DAMAGES = [flip, cut, empty, without_state, without_a_file, with_broken_checksums, without_checksums_and_metadata]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_becomes_the_unbroken_one(run, trained, caplog, damage):
    damage(run / "checkpoints" / "8")
    np.testing.assert_array_equal(train(run, 12), trained[1])
    assert any("checkpoints/8: damaged" in line and "going on from step 4" in line for line in caplog.messages)
    assert read_metrics(run) == read_metrics(trained[2])
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"damaged-8", "8", "12"} <= names
    np.testing.assert_array_equal(train(run, 12), trained[1])


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(run):
    for step in ("4", "8"):
        flip(run / "checkpoints" / step)
    with pytest.raises(ValueError, match=r"checkpoints/8: damaged: .* has changed .*; no older checkpoint is whole"):
        train(run, 12)
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"4", "8"}


def test_every_bit_of_a_checkpoint_is_in_its_checksums(run):
    step = run / "checkpoints" / "8"
    listed = json.loads((step / checksums.NAME).read_text())["sha256"]
    assert set(listed) == {str(path.relative_to(step)) for path in step.glob("*/**/*") if path.is_file()}


def test_a_checkpoint_without_checksums_is_restored_with_a_word(run, trained, caplog):
    (run / "checkpoints" / "8" / checksums.NAME).unlink()
    np.testing.assert_array_equal(train(run, 12), trained[1])
    assert any("has no checksums.json" in line for line in caplog.messages)


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(trained, tmp_path):
    refused = []

    def second(done, state):
        if done == 5:
            with pytest.raises(ValueError, match=r"is in use by process \d+ on ") as caught:
                train(tmp_path / "run", 12)
            refused.append(caught.value)

    weights = train(tmp_path / "run", 12, hooks=(loop.Hook(1, second),))
    assert len(refused) == 1
    np.testing.assert_array_equal(weights, trained[1])
    assert read_metrics(tmp_path / "run") == read_metrics(trained[2])
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_a_lock_of_a_run_that_was_killed_does_not_block_the_next(run, trained):
    (run / lock.NAME).write_text("process 1 on elsewhere")
    np.testing.assert_array_equal(train(run, 12), trained[1])


def test_a_folder_with_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"config.json that is no run's and would be replaced"):
        train(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"format": 1}'
