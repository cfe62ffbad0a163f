"""The commands of docs/distil.md and docs/pod.md: their flags exist, and they are those that the walk runs."""

import importlib
import re
import shlex
import sys

import pytest
from prose import ROOT

from converters.cli import options as converter_options
from experiments.dry_run.walk import Pace, steps
from experiments.pod import cost
from experiments.script import read_flags
from omniforcing_jax.cli.main import parse
from omniforcing_jax.io import arguments

BEGIN = r"(?:[A-Z]+=\w+ )?(?:python -m|bash launch|sbatch launch)"
COMMAND = re.compile(rf"^ {{4}}({BEGIN}[^\n\\]*(?:\\\n[^\n\\]*)*)", re.MULTILINE)
LENGTHS = {"--steps", "--seconds"}  # of a real run, which the walk shortens
CONVERT = {"convert": converter_options.ConvertOptions, "export": converter_options.ExportOptions}


def commands():
    """Module and flags of every command of both pages; what a launch file runs is a recipe."""
    for page in ("distil.md", "pod.md"):
        for text in COMMAND.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
            words = shlex.split(text.replace("\\\n", " "), comments=True)
            launch = next((i for i, word in enumerate(words) if word.startswith("launch/")), None)
            module = words[2] if launch is None else f"experiments.{words[launch + 1]}"
            yield page, module, words[3 if launch is None else launch + 2 :]


COMMANDS = list(commands())


def flags_of(words):
    return {word for word in words if word.startswith("--")} - LENGTHS


@pytest.mark.parametrize(("page", "module", "words"), COMMANDS)
def test_flags_of_every_command_exist(page, module, words, monkeypatch):
    if module == "omniforcing_jax":
        parse(words)
    elif module == "converters":
        arguments.read_command("omniforcing", None, CONVERT, words)
    else:
        name = f"{module}.__main__" if module == "experiments.dry_run" else module
        loaded = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [module, *words])
        read_flags(loaded.Arguments, loaded.__doc__)


def test_the_walk_runs_what_the_pages_say():
    """Every command of the pages that makes something of ours is in the walk, with the same flags."""
    own = {
        "experiments.import_pairs",
        "experiments.dry_run",
        "experiments.compile_for_pod",
        "experiments.bench.gathers",
    }
    own.add("experiments.pod.cost")
    walked = [(words[0], flags_of(words)) for step in steps(Pace()) if (words := shlex.split(step.command))]
    told = [(module, flags_of(words)) for _, module, words in COMMANDS if module not in own]
    assert len(told) >= 18
    assert [command for command in told if command not in walked] == []
    assert [command for command in walked if command not in told and "stock" not in command[0]] == []


def test_the_table_of_costs_is_what_its_command_prints():
    text = (ROOT / "docs" / "pod.md").read_text(encoding="utf-8")
    assert cost.table(cost.Arguments()) in text


def test_costs_fall_with_the_share_that_is_reached_and_bad_numbers_are_refused():
    def chip_hours(**other):
        return float(cost.table(cost.Arguments(**other)).splitlines()[-1].split("|")[5].replace(",", ""))

    assert chip_hours(share=0.2) == pytest.approx(2 * chip_hours(), rel=1e-3)
    assert chip_hours(peak=918.0, chips=8) == pytest.approx(chip_hours() / 2, rel=1e-3)
    with pytest.raises(ValueError, match=r"share=1\.5: must be a share of the peak"):
        cost.Arguments(share=1.5)
