"""Flags of scripts: the help shows the script's opening docstring, paragraph by paragraph, and every flag."""

import importlib
import pkgutil
import sys

import pytest

import experiments
import experiments.bench
import experiments.chime
import experiments.gpu
from experiments.script import read_flags

ROOMS = (experiments, experiments.bench, experiments.chime, experiments.gpu)
MODULES = sorted(
    found.name
    for room in ROOMS
    for found in pkgutil.iter_modules(room.__path__, room.__name__ + ".")
    if not found.ispkg
)
SCRIPTS = [name for name in MODULES if hasattr(importlib.import_module(name), "Arguments")]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if not name.startswith("experiments.ltx2_")])
def test_the_help_of_a_script_is_its_docstring_and_its_flags(name, capsys, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as caught:
        read_flags(module.Arguments, module.__doc__)
    assert not caught.value.code
    lines = capsys.readouterr().out.splitlines()
    head = module.__doc__.splitlines()[0]
    assert head in lines
    for label in ("Command: ", "Expect: ", "Hardware: "):
        if f"\n{label}" in module.__doc__:
            assert any(line.startswith(label) for line in lines), label
    assert any("show this help message" in line for line in lines)
