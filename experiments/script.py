"""How a script begins: its flags, with its opening docstring as their help, and its log."""

import logging
import re
import sys
from typing import TypeVar

import tyro

from omniforcing_jax.io.answers import take_debug

T = TypeVar("T")


def read_flags(kind: type[T], doc: str | None) -> T:
    """Read the command line into a dataclass; `--help` shows the script's docstring and its flags.

    Args:
        kind: the dataclass.
        doc: of the script.

    Raises:
        SystemExit: after printing the help that was asked for, or with code 2 if the flags cannot be read.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    # tyro joins the lines of a paragraph: "Source: ...", "Expect: ..." become paragraphs of their own.
    paragraphs = re.sub(r"(?<!\n)\n(?=[A-Z]\w*: )", "\n\n", doc or "")
    words, _ = take_debug(sys.argv[1:])
    program = None if module is None else f"python -m {module.name}"
    return tyro.cli(kind, prog=program, description=paragraphs, args=words)


def start_logging(level: int = logging.INFO) -> None:
    """Write what is logged to stderr, a line each with the time of day; absl's only if it is a warning."""
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
