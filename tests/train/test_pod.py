"""Two real processes on one host train what one process trains; where one is lost, the other ends and both go on."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pod_process
import pytest

from omniforcing_jax.tensor_file import open_tensors

ROOT = Path(__file__).parents[2]


def start(mesh, folder, steps=20, die_after=0, processes=2):
    """Start the processes of a training."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    quick = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    command = [sys.executable, str(Path(pod_process.__file__)), mesh, str(folder), str(steps), str(die_after)]
    several = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **quick, **({**several, "JAX_PROCESS_ID": str(i)} if processes > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def finish(running):
    """Wait for all processes; returns the lines of each."""
    outputs = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), outputs
    assert all("END 20" in output for output in outputs)


def result(folder):
    """Metrics without times, and the generator."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    file = open_tensors(folder / "end" / "transformer" / "model.safetensors")
    params = {name: file.read(name) for name in file.entries}
    return [{name: value for name, value in line.items() if name != "s_per_step"} for line in lines], params


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """An unbroken run of two processes."""
    folder = tmp_path_factory.mktemp("together")
    pod_process.write_networks(folder)
    finish(start("1,2,1", folder))
    return result(folder)


@pytest.mark.long
def test_two_processes_train_what_one_trains(tmp_path, together):
    pod_process.write_networks(tmp_path)
    finish(start("1,1,1", tmp_path, processes=1))
    metrics, params = result(tmp_path)
    assert [line["step"] for line in metrics] == [4, 8, 12, 16, 20]
    for line, other in zip(metrics, together[0], strict=True):
        assert line.keys() == other.keys()
        np.testing.assert_allclose([*line.values()], [*other.values()], rtol=2e-3, atol=1e-5)
    moved = {name: np.abs(x - together[1][name]).max() for name, x in params.items()}
    assert max(moved.values()) < 2e-5, max(moved, key=lambda name: moved[name])  # a fiftieth of what 4 updates move


@pytest.mark.long
def test_a_lost_process_ends_the_other_within_a_minute_and_both_go_on_exactly(tmp_path, together):
    pod_process.write_networks(tmp_path)
    stays, dies = start("1,2,1", tmp_path, die_after=13)
    dies.communicate(timeout=900)
    lost = time.monotonic()
    output, _ = stays.communicate(timeout=120)
    assert time.monotonic() - lost < 60
    assert stays.returncode != 0, output
    finish(start("1,2,1", tmp_path))
    metrics, params = result(tmp_path)
    assert metrics == together[0]
    for name, x in params.items():
        np.testing.assert_array_equal(x, together[1][name], err_msg=name)
