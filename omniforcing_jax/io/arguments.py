"""Arguments into a command: a dataclass each, read by tyro, refused in one line with the nearest known name."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tyro


def read_command(program: str, doc: str | None, commands: Mapping[str, type], arguments: Sequence[str]) -> Any:
    """Read a command and its flags.

    Args:
        program: Its name, for the help.
        doc: What the help begins with.
        commands: The dataclass of each command.
        arguments: What stands behind the program's name.

    Returns:
        An instance of the command's dataclass.

    Raises:
        ValueError: In one line, if it cannot be read; unknown names are answered with the nearest.
        SystemExit: After printing the help that was asked for.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(doc)
        print("\n".join(f"{command}: {kind.__doc__}" for command, kind in commands.items()))
        raise SystemExit(0)
    if name not in commands:
        raise ValueError(f"unknown command {name}{_nearest(name, commands)}")
    kind = commands[name]
    _refuse_unknown_flags(kind, rest)
    answer = io.StringIO()
    try:
        with contextlib.redirect_stderr(answer):
            return tyro.cli(kind, prog=f"{program} {name}", args=rest)
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(_one_line(answer.getvalue())) from None


def _refuse_unknown_flags(kind: type, arguments: Sequence[str]) -> None:
    names = [field.name.strip("_").replace("_", "-") for field in dataclasses.fields(kind)]
    known = ["--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)]
    for flag in (argument.partition("=")[0] for argument in arguments):
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            raise ValueError(f"unknown flag {flag}{_nearest(flag, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    return f"; did you mean {near[0]}?"


def _one_line(message: str) -> str:
    """Flatten tyro's message, boxed on a terminal and not elsewhere: frames, rules and the help at its end go."""
    lines = (line.strip(" │╭╮╰╯─") for line in message.splitlines())
    told = itertools.takewhile(lambda line: not re.match("(For full|Argument) helptext", line), lines)
    return " ".join(line for line in told if line.strip("- "))
