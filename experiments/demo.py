"""The main job: stream a default prompt, look at what came out, print the figures.

Command: make demo   (or python -m experiments.demo [--prompt TEXT] [--seconds S] [--seed N])
Expect: out/demo.mp4, out/demo.png, and a line each for speed and synchrony, within a minute after installation.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from omniforcing_jax.cli.main import main as command_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """What to stream, and where to put it."""

    prompt: str = "a red ball and a blue ball"
    seconds: int = 13
    seed: int = 0
    out: Path = Path("out")


def look_at(demo: Demo, clip: Path) -> None:
    """Judge the file as `evaluate` does, draw its contact sheet, and say what was seen and heard."""
    from experiments.chime import metrics, prompts
    from experiments.chime.evaluate import read_file
    from experiments.chime.sheet import write_sheet

    video, audio, rate = read_file(clip)
    sheet = clip.with_suffix(".png")
    write_sheet(sheet, video, audio, rate, demo.prompt)
    figures = metrics.judge([metrics.perceive((video, audio, rate), prompts.parse(demo.prompt))])
    print(f"{sheet}: contact sheet")
    print(", ".join(f"{name} {value}" for name, value in figures.items() if name != "drift"))


def main(demo: Demo) -> int:
    """Stream, then judge; returns the exit code."""
    demo.out.mkdir(parents=True, exist_ok=True)
    clip = demo.out / "demo.mp4"
    request = ["--prompt", demo.prompt, "--seconds", str(demo.seconds), "--seed", str(demo.seed), "--out", str(clip)]
    if code := command_line(["stream", *request]):
        return code
    look_at(demo, clip)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Demo)))
