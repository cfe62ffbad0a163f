"""A command line into a command: read, checked, run, and refused in one line on stderr with exit code 2."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omniforcing_jax.io.answers import answer, take_debug
from omniforcing_jax.io.arguments import read_command

from . import commands
from .options import PROGRAM, BenchOptions, CheckOptions, ConvertOptions, DiffOptions, ExportOptions, InspectOptions

USAGE = """Convert weights from and to PyTorch checkpoints.

The program `omniforcing` has these commands too, except for bench, which `python -m converters` runs in a checkout.
"""
COMMANDS: Mapping[str, tuple[type, Callable[[Any], commands.Work]]] = {
    "convert": (ConvertOptions, commands.prepare_convert),
    "export": (ExportOptions, commands.prepare_export),
    "inspect": (InspectOptions, commands.prepare_inspect),
    "diff": (DiffOptions, commands.prepare_diff),
    "check": (CheckOptions, commands.prepare_check),
    "bench": (BenchOptions, commands.prepare_bench),
}


def parse(arguments: Sequence[str]) -> Any:
    """Read a whole command line, the command's name first; returns an instance of the command's dataclass.

    Raises:
        ValueError: In one line, if it cannot be read; unknown names are answered with the nearest.
        SystemExit: After printing the help that was asked for.
    """
    return read_command(PROGRAM, USAGE, {name: kind for name, (kind, _) in COMMANDS.items()}, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a whole command line, the command's name first. Returns the exit code."""
    words, debug = take_debug(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: prepare(words)(), debug=debug)


def prepare(arguments: Sequence[str]) -> commands.Work:
    """Read a whole command line and check the request; what comes back does the work and returns the exit code.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
        SystemExit: After printing the help that was asked for.
    """
    options = parse(arguments)
    _, prepare_one = COMMANDS[arguments[0]]
    return prepare_one(options)
