"""Help pages: every command has groups, a sentence per flag, its defaults, and examples that can be pasted."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from omniforcing_jax.cli.main import COMMANDS, GROUPS, main
from omniforcing_jax.io.arguments import read_command, read_flags
from omniforcing_jax.io.help_page import describe_command, list_commands


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How large it is."""

    height: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Height in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw(Size):
    """Draw
    something.

    Example:
      pen draw --out a.png
    """

    kind: Literal["line", "dot"] = "line"
    """What to draw."""
    out: Path
    """File."""
    points: tuple[tuple[float, str], ...] = ()
    """Where."""
    more: tyro.conf.UseAppendAction[tuple[str, ...]] = ("x", "y")
    """May be given several times."""
    fill: bool = True
    """Leave the inside empty."""
    quiet: bool = False
    """Print nothing."""


def test_flags_are_grouped_by_the_class_that_declares_them_and_required_ones_come_first():
    page = describe_command("pen draw", Draw)
    assert page.splitlines() == [
        "Draw something.",
        "",
        "usage: pen draw --out PATH [flags]",
        "",
        "Flags:",
        "  --out PATH                File.",
        "  --kind line|dot           What to draw. (default: line)",
        "  --points NUMBER TEXT [...]",
        "                            Where.",
        "  --more TEXT               May be given several times. (default: x y)",
        "  --no-fill                 Leave the inside empty.",
        "  --quiet                   Print nothing.",
        "",
        "How large it is:",
        "  --height PIXELS           Height in pixels.",
        "",
        "Example:",
        "  pen draw --out a.png",
    ]


def test_a_program_lists_its_commands_in_groups():
    page = list_commands("pen", "Draws.", {"Draw": {"draw": Draw}, "Other": {"erase": "Erase it."}})
    assert [line for line in page.splitlines() if re.match("  \\w", line)] == [
        "  draw   Draw something.",
        "  erase  Erase it.",
    ]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_a_program_without_a_command_prints_its_help(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        read_command("pen", "Draws.", {"draw": Draw}, arguments)
    assert end.value.code == 0
    assert "  draw  Draw something." in capsys.readouterr().out


def test_flags_are_read_in_any_order():
    assert read_flags("pen draw", Draw, ["--height", "3", "--out", "a"]) == Draw(out=Path("a"), height=3)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_sentence_and_fits_the_page(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    for field in dataclasses.fields(COMMANDS[name]):
        flag = field.name.strip("_").replace("_", "-")
        assert flag in page or "positional" in str(field.type).lower(), flag
    for sentence in re.findall(r"^  --\S+(?: [A-Z|,\[\].a-z0-9]+)*? {2,}(\S.*)", page, re.MULTILINE):
        assert sentence[0].isupper(), sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_can_be_parsed(name):
    page = describe_command(f"omniforcing {name}", COMMANDS[name])
    examples = [line.strip() for line in page.splitlines() if line.startswith("  omniforcing ")]
    assert examples
    for example in examples:
        program, command, *flags = shlex.split(example)
        assert isinstance(read_flags(f"{program} {command}", COMMANDS[command], flags), COMMANDS[command])


def test_the_program_lists_every_command_once(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names)) == 13
    for name in names:
        assert len(re.findall(rf"^  {name} +\S", page, re.MULTILINE)) == 1


def test_the_program_tells_its_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"omniforcing \d+\.\d+\.\d+\n", capsys.readouterr().out)
