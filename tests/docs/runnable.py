"""Code blocks of documents that are marked runnable, and how they are run; CONTRIBUTING.md says what the marks mean.

    <!-- runnable -->          the fenced block below is run as it stands, with the weights that ship
    <!-- runnable: tiny -->    the same, with tiny weights in place of the large folders that it names

Commands run in this process through the command line's own `main`, Python blocks in one namespace per document.
"""

import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import tiny_stream
import tiny_text
from PIL import Image

from omniforcing_jax.cli.main import main as omniforcing

MARK = re.compile(r"<!-- runnable(?:: (\w+))? -->\n")
FENCED = re.compile(r"```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SIDE, RATE, FRAMES_PER_SECOND, SECONDS = 64, 16_000, 24, 14


class CodeBlock(NamedTuple):
    """A marked block: where it is, its language, what is tiny in it, and its text."""

    where: str
    language: str
    weights: str
    text: str


def blocks_of(name: str, text: str) -> list[CodeBlock]:
    """Find the marked blocks of a document.

    Raises:
        ValueError: if a mark is unknown, or no fenced block follows it.
    """
    found = []
    for mark in MARK.finditer(text):
        block = FENCED.match(text, mark.end())
        where = f"{name}:{text.count(chr(10), 0, mark.start()) + 1}"
        if block is None or (mark[1] or "") not in ("", "tiny") or block[1] not in ("sh", "python"):
            raise ValueError(
                f"{where}: a mark is <!-- runnable --> or <!-- runnable: tiny -->, then ```sh or ```python"
            )
        found.append(CodeBlock(where, block[1], mark[1] or "", block[2]))
    return found


def commands_of(text: str) -> list[list[str]]:
    """Split a shell block into commands: lines, joined where they end in a backslash, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_block(block: CodeBlock, folder: Path, namespace: dict[str, Any]) -> None:
    """Run a block in the current folder, its inputs made first.

    Raises:
        AssertionError: naming the command, if it does not end well.
    """
    make_inputs(folder, block)
    if block.language == "python":
        exec(compile(block.text, block.where, "exec"), namespace)
        return
    for words in commands_of(block.text):
        code = run_command(words)
        assert code == 0, f"{block.where}: exit code {code} of {shlex.join(words)}"


def run_command(words: list[str]) -> int:
    """Run a command of the package in this process; returns its exit code.

    Raises:
        ValueError: if it is none of ours.
    """
    match words:
        case ["omniforcing", *arguments] | ["python", "-m", "omniforcing_jax", *arguments]:
            return omniforcing(arguments)
        case ["python", "-m", module, *arguments]:
            return run_module(module, arguments)
    raise ValueError(f"{shlex.join(words)}: only omniforcing and python -m can be marked runnable")


def run_module(module: str, arguments: list[str]) -> int:
    """Run a module as `python -m` does; returns its exit code."""
    before, sys.argv = sys.argv, [module, *arguments]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # imported by another test
            runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0) if not isinstance(end.code, str) else 1
    finally:
        sys.argv = before
    return 0


def make_inputs(folder: Path, block: CodeBlock) -> None:
    """Make the files and weights that a block names: what a reader would bring."""
    (folder / "out").mkdir(exist_ok=True)
    for name, make in INPUTS.items():
        if name in block.text and not (folder / name).exists():
            make(folder / name)
    if block.weights == "tiny" and not (folder / "weights").exists():
        (folder / "weights").mkdir()
        for name, source in tiny_weights().items():  # all of them: one shares components with another beside it
            (folder / "weights" / name).symlink_to(source)


def tiny_weights() -> dict[str, Path]:
    """Weights folders below weights/, by the names that documents use: chime's kind, and LTX-2's kind with Gemma."""
    small, large = tiny_stream.folders(), tiny_text.folders()
    return {
        "student": small / "student",
        "teacher": small / "teacher",
        "ltx2": large / "teacher",
        "ltx2-student": large / "student",
        "text": large / "text",
    }


def _image(path: Path) -> None:
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (SIDE, 1))] * 3, axis=-1)).save(path)


def _sound(path: Path) -> None:
    samples = np.sin(2 * np.pi * 440 * np.arange(SECONDS * RATE) / RATE) * 0.3
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.repeat((samples * 32767).astype(np.int16), 2)[None], format="s16", layout="stereo"
        )
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _picture(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FRAMES_PER_SECOND, width=SIDE, height=SIDE)
        stream.pix_fmt = "yuv420p"
        for i in range(1 + FRAMES_PER_SECOND * SECONDS):
            pixels = np.full((SIDE, SIDE, 3), i % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


def _prompts(path: Path) -> None:
    path.write_text("a red ball\na blue ball and a red ball\n", encoding="utf-8")


INPUTS: dict[str, Callable[[Path], None]] = {
    "first.png": _image,
    "music.wav": _sound,
    "silent.mp4": _picture,
    "prompts.txt": _prompts,
}
