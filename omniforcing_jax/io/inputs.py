"""Inputs are safe from outputs: an output that is one of them, under any name, is refused before the work begins."""

import os
from collections.abc import Mapping
from pathlib import Path

from omniforcing_jax.io.atomic_write import AnyPath


def refuse_inputs(flag: str, output: AnyPath, inputs: Mapping[str, AnyPath | None]) -> None:
    """Refuse an output that is the file of an input, or a file in the folder of one; links and hard links count.

    Args:
        flag: Flag of the output, without dashes.
        output: A file, or a folder to write into. It need not exist.
        inputs: Files and folders that are read, by the flag without dashes, or the positional NAME; None was not given.

    Raises:
        ValueError: Names both flags.
    """
    for name, path in inputs.items():
        if path is not None and _holds(Path(path), output):
            source = name if name.isupper() else f"--{name}"
            rule = f"is what {source} reads" if _is_same(path, output) else f"is a part of {source} {path}"
            raise ValueError(f"--{flag} {os.fspath(output)}: {rule}; choose another name")


def _holds(path: Path, output: AnyPath) -> bool:
    if _is_same(path, output):
        return True
    is_old_file = os.path.isfile(output) and path.is_dir()
    return is_old_file and any(_is_same(Path(top) / name, output) for top, _, files in os.walk(path) for name in files)


def _is_same(a: AnyPath, b: AnyPath) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
