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

from omniforcing_jax.io.tensor_file import open_tensors

ROOT = Path(__file__).parents[2]


def start(what, mesh, folder, die_after=0, processes=2):
    """Start the processes of a training of 20 steps."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    in_a_hurry = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # as conftest.py
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": in_a_hurry}
    paths = ROOT, ROOT / "tests", ROOT / "tests" / "train", os.environ.get("PYTHONPATH", "")
    quick["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    quick["NPROC"] = "1"  # with more threads XLA's CPU runtime (jax 0.10) mixes up collectives that gloo carries
    quick["JAX_COMPILATION_CACHE_DIR"] = str(folder.parent / "compiled_for_pods")  # of all runs of this test session
    command = [sys.executable, str(Path(pod_process.__file__)), what, mesh, str(folder), "20", str(die_after)]
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
    """Wait for all processes."""
    outputs = [process.communicate(timeout=1800)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), outputs
    assert all("END 20" in output for output in outputs)


def result(folder):
    """Metrics without times, and the generator."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    file = open_tensors(folder / "end" / "transformer" / "model.safetensors")
    params = {name: file.read(name) for name in file.entries}
    return [{name: value for name, value in line.items() if name != "s_per_step"} for line in lines], params


def assert_one_trains_what_several_train(what, folders, several="1,2,1", number=2):
    """Train in several processes into the first folder, in one into the second, and compare."""
    for folder, mesh, processes in zip(folders, (several, "1,1,1"), (number, 1), strict=True):
        pod_process.write_networks(folder)
        finish(start(what, mesh, folder, processes=processes))
    (metrics, params), (others, other_params) = map(result, folders)
    assert [line["step"] for line in metrics] == [4, 8, 12, 16, 20]
    for line, other in zip(metrics, others, strict=True):
        assert line.keys() == other.keys()
        np.testing.assert_allclose([*line.values()], [*other.values()], rtol=2e-3, atol=1e-5)
    for name, x in params.items():  # within a twentieth of what four updates move at most
        np.testing.assert_allclose(x, other_params[name], atol=2e-5, err_msg=name)


@pytest.mark.long
def test_two_processes_train_what_one_trains(tmp_path_factory):
    assert_one_trains_what_several_train("two_layers", [tmp_path_factory.mktemp(name) for name in ("two", "one")])


@pytest.mark.long
def test_two_processes_train_stage_3_as_one_does(tmp_path_factory):
    assert_one_trains_what_several_train("stage_3", [tmp_path_factory.mktemp(name) for name in ("two", "one")])


@pytest.mark.long
def test_a_lost_process_ends_the_other_within_a_minute_and_both_go_on_exactly(tmp_path_factory):
    unbroken, broken = (tmp_path_factory.mktemp(name) for name in ("unbroken", "broken"))
    finish(start("two_layers", "1,2,1", unbroken))
    stays, dies = start("two_layers", "1,2,1", broken, die_after=13)
    dies.communicate(timeout=1800)
    lost = time.monotonic()
    output, _ = stays.communicate(timeout=120)
    assert time.monotonic() - lost < 60
    assert stays.returncode != 0, output
    assert [path.name for path in (broken / "run" / "checkpoints").iterdir() if path.name.isdigit()] == ["8"]
    finish(start("two_layers", "1,2,1", broken))
    (metrics, params), (others, other_params) = map(result, (broken, unbroken))
    assert metrics == others
    for name, x in params.items():
        np.testing.assert_array_equal(x, other_params[name], err_msg=name)
