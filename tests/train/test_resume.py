"""A run that was stopped ten times, by every means, is the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_training

from omniforcing_jax.train import data, loop

ROOT = Path(__file__).parents[2]


class Crash(Exception):
    """The program ends without a word."""


def stop_at(step, how):
    def call(done, state):
        if done == step:
            how()

    return (loop.Hook(1, call),)


def crash():
    raise Crash


def told_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "s_per_step"} for line in lines]


def killed_while_saving(folder, step):
    """Go on with the run in a process of its own, which dies while it writes the checkpoint of `step`."""
    command = [sys.executable, tiny_training.__file__, str(folder), str(step)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    died = subprocess.run(command, env=environment, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    assert str(step) not in names
    assert any(name.startswith(f"{step}.") for name in names)  # it was being written


def reached(folder):
    """The step of the newest checkpoint that is whole."""
    return max((int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()), default=0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return jax.device_get(tiny_training.run(folder)), folder


def assert_the_same(state, folder, unbroken):
    jax.tree.map(np.testing.assert_array_equal, state, unbroken[0])
    assert metrics(folder) == metrics(unbroken[1])


def test_a_run_stopped_at_ten_random_steps_equals_an_unbroken_one(unbroken, tmp_path):
    rng = np.random.default_rng(11)
    for how in (crash, told_to_stop, crash, told_to_stop, "killed", crash, told_to_stop, crash, told_to_stop, crash):
        begins = reached(tmp_path)
        step = int(begins + rng.integers(2, 9))
        if how == "killed":
            killed_while_saving(tmp_path, (step // tiny_training.SAVE_EVERY + 1) * tiny_training.SAVE_EVERY)
        elif how is crash:
            with pytest.raises(Crash):
                tiny_training.run(tmp_path, stop_at(step, crash))
        else:
            tiny_training.run(tmp_path, stop_at(step, told_to_stop))
            assert reached(tmp_path) == step + 1  # the wish is heard after the next step
    assert reached(tmp_path) < tiny_training.STEPS
    assert_the_same(jax.device_get(tiny_training.run(tmp_path)), tmp_path, unbroken)


@pytest.mark.long
def test_a_run_killed_again_and_again_while_saving_equals_an_unbroken_one(unbroken, tmp_path):
    tiny_training.run(tmp_path, stop_at(5, told_to_stop))
    for step in range(tiny_training.SAVE_EVERY, tiny_training.STEPS, tiny_training.SAVE_EVERY):
        killed_while_saving(tmp_path, step)  # nothing of this step is left,
        tiny_training.run(tmp_path, stop_at(step, told_to_stop))  # and a later one is whole
    assert_the_same(jax.device_get(tiny_training.run(tmp_path)), tmp_path, unbroken)


def test_a_line_holds_the_means_since_the_line_before(unbroken):
    batches = data.batches(tiny_training.source(), 2, tiny_training.SEED)
    orders = [np.dot(next(batches)["row"][:, 0], [100, 1]) for _ in range(tiny_training.STEPS)]
    lines = metrics(unbroken[1])
    assert [line["step"] for line in lines] == list(range(4, tiny_training.STEPS + 1, 4))
    np.testing.assert_array_equal([line["critic/order"] for line in lines], np.reshape(orders, (-1, 4)).mean(1))
    updated = [[o for i, o in enumerate(orders) if i % 3 == 0 and i // 4 == n] for n in range(len(lines))]
    assert [line["generator/order"] for line in lines] == [np.mean(found) for found in updated]
