"""Mains of experiments: bad input is one line and exit code 2, before any work."""

import json
from pathlib import Path

import pytest

from experiments import endless, judge_controls, mains
from experiments.chime import change, drift, given, levels
from omniforcing_jax.io import machine


def _refused(capsys, work, *args):
    with pytest.raises(SystemExit) as caught:
        work(*args)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_a_value_error_becomes_one_line(capsys):
    def work():
        with mains.refusing(None):
            raise ValueError("two\nlines")

    assert _refused(capsys, work) == "error: two lines\n"


def test_other_errors_pass():
    with pytest.raises(KeyError), mains.refusing():
        raise KeyError("a mistake of ours")


def test_figures_are_kept_where_they_were_asked_for(tmp_path):
    path = tmp_path / "figures.json"
    with mains.refusing(path, None):
        mains.keep_figures(path, {"a": 1})
        mains.keep_figures(None, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("main", "arguments", "named"),
    [
        (given.main, given.Arguments(json=Path("no/such/x.json")), "no/such/x.json"),
        (change.main, change.Arguments(json=Path("no/such/x.json")), "no/such/x.json"),
        (drift.main, drift.Arguments(plot=Path("no/such/x.png")), "no/such/x.png"),
        (judge_controls.main, judge_controls.Arguments(json=Path("no/such/x.json")), "no/such/x.json"),
        (endless.main, endless.Config(json=Path("no/such/x.json")), "no/such/x.json"),
        (endless.main, endless.Config(blocks=11), "blocks=11"),
        (endless.main, endless.Config(preset="huge"), "preset='huge'"),
        (levels.main, levels.Arguments(count=9), "--count 9"),
        (levels.main, levels.Arguments(weights=Path("no/such/weights")), "no/such/weights"),
    ],
)
def test_every_main_refuses_in_one_line(capsys, monkeypatch, main, arguments, named):
    for static in ("use_compilation_cache", "use_one_heap"):
        monkeypatch.setattr(machine, static, lambda: None)
    assert named in _refused(capsys, main, arguments)
