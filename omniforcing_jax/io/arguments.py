"""Command lines into dataclasses of flags, read by tyro. What cannot be read is refused in one line."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tyro

from omniforcing_jax.io import help_page


def read_command(program: str, doc: str | None, commands: Mapping[str, type], arguments: Sequence[str]) -> Any:
    """Read a command and its flags.

    Args:
        program: Name of the program, for the help.
        doc: What the help of the program begins with.
        commands: The dataclass of each command.
        arguments: What follows the program's name on the command line.

    Returns:
        An instance of the command's dataclass.

    Raises:
        ValueError: In one line, if it cannot be read; unknown names are answered with the nearest.
        SystemExit: After printing the help that was asked for.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(help_page.list_commands(program, doc or "", {"Commands": commands}))
        raise SystemExit(0)
    if name not in commands:
        raise unknown("command", name, commands)
    return read_flags(f"{program} {name}", commands[name], rest)


def read_flags(program: str, kind: type, arguments: Sequence[str]) -> Any:
    """Read the flags of one command.

    Args:
        program: What stands before the flags, for the help.
        kind: The command's dataclass.
        arguments: The flags and their values.

    Returns:
        An instance of `kind`.

    Raises:
        ValueError: In one line, if they cannot be read; unknown flags are answered with the nearest.
        SystemExit: After printing the help that was asked for.
    """
    if "-h" in arguments or "--help" in arguments:
        print(help_page.describe_command(program, kind))
        raise SystemExit(0)
    _refuse_unknown_flags(kind, arguments)
    answer = io.StringIO()
    try:
        with contextlib.redirect_stderr(answer):
            return tyro.cli(kind, prog=program, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(one_line(answer.getvalue())) from None


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name; it suggests the nearest known one."""
    (nearest,) = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    return ValueError(f"unknown {what} {name}; did you mean {nearest}?")


def _refuse_unknown_flags(kind: type, arguments: Sequence[str]) -> None:
    names = [name.strip("_").replace("_", "-") for name in _list_flags(kind)]
    known = ["--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)]
    for flag in (argument.partition("=")[0] for argument in arguments):
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            raise unknown("flag", flag, known)


def _list_flags(kind: type) -> list[str]:
    """List the fields of a dataclass of flags; a field that is such a dataclass itself is a group of flags."""
    types, names = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        names += _list_flags(types[field.name]) if dataclasses.is_dataclass(types[field.name]) else [field.name]
    return names


def one_line(message: str) -> str:
    """Flatten tyro's message, which is boxed on a terminal only. Frames, rules and the pointer to the help go."""
    lines = (line.strip(" │╭╮╰╯─") for line in message.splitlines())
    kept = itertools.takewhile(lambda line: not re.match("(For full|Argument) helptext", line), lines)
    return " ".join(line for line in kept if line.strip("- "))
