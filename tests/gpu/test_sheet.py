"""Figures of a part: whole after every row, whatever fails or is too late."""

import json
import time

import jax
import jax.numpy as jnp

from experiments.gpu import compiled
from experiments.gpu.sheet import Sheet, markdown


def read(path):
    return json.loads(path.read_text())


def test_the_file_is_whole_after_every_row(tmp_path):
    path = tmp_path / "a.json"
    sheet = Sheet(path, device="x")
    assert read(path) == {"device": "x", "complete": False}
    sheet.measure("rows", {"a": 1}, lambda: {"ms": 2.0})
    assert read(path)["rows"] == [{"a": 1, "ms": 2.0}]
    sheet.measure("rows", {"a": 2}, lambda: [{"ms": 3.0}, {"ms": float("nan")}])
    assert read(path)["rows"][1:] == [{"a": 2, "ms": 3.0}, {"a": 2, "ms": None}]
    assert sheet.finish()["complete"]
    assert read(path)["complete"]


def test_a_row_that_fails_says_so_and_the_next_one_is_made(tmp_path):
    sheet = Sheet(tmp_path / "a.json")
    sheet.measure("rows", {"a": 1}, lambda: {"ms": 1 / 0})
    sheet.measure("rows", {"a": 2}, lambda: {"ms": 1.0})
    rows = read(tmp_path / "a.json")["rows"]
    assert rows == [{"a": 1, "error": "ZeroDivisionError: division by zero"}, {"a": 2, "ms": 1.0}]
    assert markdown(("a", "ms"), rows).splitlines()[2:] == ["| 1 | ZeroDivisionError: division by zero |", "| 2 | 1 |"]


def test_a_row_as_long_as_those_before_it_is_not_begun_too_late(tmp_path, monkeypatch):
    used = iter((0.0, 59.95, 59.95))
    monkeypatch.setattr("experiments.gpu.sheet.machine.process_seconds", lambda: next(used))
    sheet = Sheet(tmp_path / "a.json", minutes=1)
    sheet.measure("rows", {"a": 1}, lambda: time.sleep(0.1) or {"ms": 1.0})
    sheet.measure("rows", {"a": 2}, lambda: {"ms": 1.0})
    assert sheet.figures["rows"][1] == {"a": 2, "skipped": "0 s were left"}


def test_programs_that_become_ready_are_named_with_their_seconds(monkeypatch):
    monkeypatch.setattr(compiled, "LEAST_S", 0.0)
    rows = []
    with compiled.CompiledPrograms(rows.append) as programs:
        jax.jit(lambda x: jnp.tanh(x) @ x.T)(jnp.ones((3, 7)))
    assert "jit(<lambda>)" in [row["program"] for row in rows]
    assert programs.compiled == sum(not row["from_disk"] for row in rows)
    assert compiled.table({"compiled": rows}).count("\n") == 1 + len(rows)
