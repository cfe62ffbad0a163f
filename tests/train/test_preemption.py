"""Two processes train one network; a notice to one of them stops both at the same step, with one checkpoint."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(folder, told_at):
    """Run both processes to their end; returns the last line of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
    both = [
        subprocess.Popen(
            [*command, str(process), port, str(folder), str(told_at)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return [next(line for line in output.splitlines() if line.startswith("END")) for output, _ in outputs]


@pytest.mark.long
def test_a_notice_to_one_process_stops_both_at_one_step_and_the_resumed_run_equals_an_unbroken_one(tmp_path):
    first, second = train(tmp_path / "stopped", 7)
    assert first == second
    (step,) = (path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir())
    assert 7 <= int(step) < 60
    assert train(tmp_path / "stopped", 0) == train(tmp_path / "unbroken", 0)
