"""How a script begins: its flags, with its opening docstring as their help, and its log."""

import contextlib
import io
import logging
import re
import sys
from typing import TypeVar

import tyro

from omniforcing_jax.io.answers import refuse, take_debug
from omniforcing_jax.io.arguments import one_line

T = TypeVar("T")


def read_flags(kind: type[T], doc: str | None) -> T:
    """Read the command line into a dataclass; `--help` shows the script's docstring and its flags.

    Args:
        kind: The dataclass. What its fields refuse is answered as a flag that cannot be read.
        doc: Of the script.

    Raises:
        SystemExit: After printing the help that was asked for, or with code 2 and one line on stderr if the flags
            cannot be read.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    # tyro joins the lines of a paragraph: "Source: ...", "Expect: ..." become paragraphs of their own.
    paragraphs = re.sub(r"(?<!\n)\n(?=[A-Z]\w*: )", "\n\n", doc or "")
    words, _ = take_debug(sys.argv[1:])
    prog = None if module is None else f"python -m {module.name}"
    answer = io.StringIO()
    try:
        with contextlib.redirect_stderr(answer):
            return tyro.cli(
                kind, prog=prog, description=paragraphs, args=words, config=(tyro.conf.EnumChoicesFromValues,)
            )
    except SystemExit as end:
        if end.code:
            said = re.sub(r"^Value error Error parsing Arguments: ", "", one_line(answer.getvalue()))
            sys.exit(refuse(ValueError(said)))
        raise


def start_logging(level: int = logging.INFO) -> None:
    """Write what is logged to stderr, a line each with the time of day; absl's only if it is a warning."""
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
