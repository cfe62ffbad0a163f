"""Scripts of experiments: bad input is one line and exit code 2, before any work."""

import json
from pathlib import Path

import pytest

from experiments import cli_errors, endless, judge_controls
from experiments.chime import conditioning, drift, levels, prompt_change
from omniforcing_jax.io import machine

TAKEN = Path(__file__)  # a file is no folder to write into


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
        with cli_errors.refusing(None):
            raise ValueError("two\nlines")

    assert _refused(capsys, work) == "error: two lines\n"


def test_other_errors_pass():
    with pytest.raises(KeyError), cli_errors.refusing():
        raise KeyError("a mistake of ours")


def test_figures_are_kept_where_they_were_asked_for(tmp_path):
    path = tmp_path / "figures.json"
    with cli_errors.refusing(path, None):
        cli_errors.keep_figures(path, {"a": 1})
        cli_errors.keep_figures(None, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_folders_of_outputs_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "figures.json"
    with cli_errors.refusing(path):
        cli_errors.keep_figures(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("main", "arguments", "named"),
    [
        (conditioning.main, conditioning.Arguments(json=TAKEN / "x.json"), str(TAKEN)),
        (prompt_change.main, prompt_change.Arguments(json=TAKEN / "x.json"), str(TAKEN)),
        (drift.main, drift.Arguments(plot=TAKEN / "x.png"), str(TAKEN)),
        (judge_controls.main, judge_controls.Arguments(json=TAKEN / "x.json"), str(TAKEN)),
        (endless.main, endless.Arguments(json=TAKEN / "x.json"), str(TAKEN)),
        (endless.main, endless.Arguments(blocks=11), "blocks=11"),
        (endless.main, endless.Arguments(preset="huge"), "preset='huge'"),
        (levels.main, levels.Arguments(count=9), "--count 9"),
        (levels.main, levels.Arguments(weights=Path("no/such/weights")), "no/such/weights"),
    ],
)
def test_every_main_refuses_in_one_line(capsys, monkeypatch, main, arguments, named):
    for static in ("use_compilation_cache", "use_one_heap"):
        monkeypatch.setattr(machine, static, lambda: None)
    assert named in _refused(capsys, main, arguments)
