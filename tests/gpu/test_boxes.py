"""Time boxes: what hangs is killed with all that it started, what fails is noted, and the next part runs."""

import json
import os
import sys
import time
from pathlib import Path

from experiments.gpu.boxes import Part, run_boxed, run_parts

KEEP = "import json, pathlib, sys; pathlib.Path(sys.argv[2]).write_text(json.dumps({'minutes': float(sys.argv[4])}))\n"
MODULES = {
    "hangs": KEEP + "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)\n",
    "fails": KEEP + "print('a row'); raise SystemExit('out of memory')\n",
    "works": KEEP,
}


def environment(tmp_path):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_part_that_hangs_is_killed_and_the_next_ones_run(tmp_path):
    parts, outcomes = [Part(name=name, module=name, share=1) for name in MODULES], []
    begun = time.monotonic()
    run_parts(parts, tmp_path, 6.0, environment(tmp_path), outcomes.append)
    assert time.monotonic() - begun < 6
    assert [(outcome.part, outcome.how) for outcome in outcomes] == [
        ("hangs", "out of time"),
        ("fails", "failed"),
        ("works", "done"),
    ]
    hung, failed, worked = outcomes
    assert 1.8 < hung.seconds <= hung.box_s + 0.2
    assert "out of memory" in failed.error
    assert worked.error is None
    assert worked.box_s > hung.box_s  # what others leave is left to it
    assert all("minutes" in json.loads((tmp_path / f"{name}.json").read_text()) for name in MODULES)


def test_a_part_is_told_less_time_than_it_has(tmp_path):
    run_parts([Part(name="works", module="works", share=3)], tmp_path, 30.0, environment(tmp_path), lambda _: None)
    assert 0.4 < json.loads((tmp_path / "works.json").read_text())["minutes"] < 0.46


def test_processes_that_a_part_started_end_with_it(tmp_path):
    child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    log = tmp_path / "log"
    assert run_boxed("a", [sys.executable, "-c", child], 20.0, log, os.environ).how == "done"
    assert is_gone(int(log.read_text().splitlines()[-1]))


def is_gone(pid, patience=10.0):
    """Whether a process ends soon; one that is dead and not yet collected has ended."""
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
