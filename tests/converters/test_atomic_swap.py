"""Folders appear whole or not at all, and nothing stays behind: not after an error, a signal or a kill."""

import signal
import subprocess
import sys
import time

import pytest
from published import NEWER

from converters import atomic_swap, bench


def test_what_is_swapped_in_replaces_the_old_whole(tmp_path):
    for name, text in (("new", "2"), ("place", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{text}.txt").write_text(text)
    atomic_swap.swap_in(tmp_path / "new", tmp_path / "place")
    assert [path.name for path in tmp_path.rglob("*")] == ["place", "2.txt"]


def test_a_system_that_cannot_exchange_two_names_gets_there_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_swap, "_exchange", lambda a, b: False)
    test_what_is_swapped_in_replaces_the_old_whole(tmp_path)


def test_an_error_leaves_neither_stage_nor_new_folders(tmp_path):
    def fail(stage):
        (stage / "half").write_text("x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), atomic_swap.staging(tmp_path / "a" / "b") as stage:
        fail(stage)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    (tmp_path / f".new.{done.pid}").mkdir()
    (tmp_path / ".new.other").mkdir()
    with atomic_swap.staging(tmp_path) as stage:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".new.other", stage.name])


def test_a_conversion_that_is_told_to_stop_leaves_nothing(tmp_path):
    bench.make_checkpoint(tmp_path / "source.safetensors", NEWER)
    slow = "import time; from converters import convert; convert._write_component = lambda *_: time.sleep(60)"
    command = (
        f"{slow}; import runpy, sys; sys.argv[0] = 'converters'; runpy.run_module('converters', run_name='__main__')"
    )
    arguments = ["convert", "--from", str(tmp_path / "source.safetensors"), "--out", str(tmp_path / "ours")]
    process = subprocess.Popen([sys.executable, "-c", command, *arguments], stdout=subprocess.DEVNULL)
    for _ in range(600):
        if list(tmp_path.glob("ours/.new.*")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not (tmp_path / "ours").exists()
