"""How fast a conversion is beside a plain copy, and how much memory it takes: measured on a synthetic checkpoint.

The checkpoint has LTX-2.3's full widths and few layers, so its tensors are as large as the real ones. The conversion
runs in a process of its own; its memory is compared with that of the same process before it opens the file.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from converters.component import LTX2
from converters.piece import CHUNK
from converters.transformer import COMPONENT
from omniforcing_jax.config import LTX2_19B, CrossTimestep, ModelConfig, require
from omniforcing_jax.tensor_file import write_runs

BFLOAT16 = np.dtype(jnp.bfloat16)
MEASURE = """
import json, resource, sys, time
from pathlib import Path
from converters import convert
from converters.choices import Choices
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, begin = peak(), time.monotonic()
convert.run(convert.prepare([Path(sys.argv[1])], Path(sys.argv[2]), Choices()))
print(json.dumps({"seconds": time.monotonic() - begin, "before": before, "peak": peak()}))
"""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; bytes and seconds, of each kind of run the fastest.

    Attributes:
        size: Bytes of the checkpoint.
        copy_s: Time to copy the file.
        convert_s: Time to convert it.
        before: Peak resident bytes of the converting process before it opens the file.
        peak: Its peak in the end.
    """

    size: int
    copy_s: float
    convert_s: float
    before: int
    peak: int

    @property
    def share(self) -> float:
        """Speed of the conversion over the speed of the copy."""
        return self.copy_s / self.convert_s

    def __str__(self) -> str:
        """Say it in three lines."""
        copy, convert = (self.size / 1e9 / seconds for seconds in (self.copy_s, self.convert_s))
        return (
            f"checkpoint of {self.size / 1e9:.2f} GB: copied in {self.copy_s:.2f} s, {copy:.2f} GB/s\n"
            f"converted in {self.convert_s:.2f} s, {convert:.2f} GB/s, {self.share:.0%} of the copy's speed\n"
            f"peak memory {(self.peak - self.before) / 1e6:.0f} MB over the interpreter's {self.before / 1e6:.0f} MB"
        )


def full_width(layers: int) -> ModelConfig:
    """Return LTX-2.3's network with few layers."""
    newer = {"caption_channels": None, "gated_attention": True, "text_adaln": True}
    fields = {name: getattr(LTX2_19B, name) for name in ("video", "audio", "rotary", "gate_multiplier")}
    return ModelConfig(layers=layers, cross_timestep=CrossTimestep.CROSS, **fields | newer)


def make_checkpoint(path: Path, config: ModelConfig) -> int:
    """Write a checkpoint of random finite values as LTX-2 is published; returns its bytes."""
    placements = COMPONENT.place(config, LTX2)
    layout = {p.theirs: (BFLOAT16, p.shape) for p in sorted(placements, key=lambda p: p.theirs)}
    pool = np.random.default_rng(0).integers(0, 0x4000, CHUNK, dtype=np.uint16).view(BFLOAT16)  # all below 2 in size

    def runs(name: str) -> Iterator[np.ndarray]:
        left = int(np.prod(layout[name][1]))
        while left:
            yield (run := pool[: min(left, pool.size)])
            left -= run.size

    header = json.dumps(COMPONENT.namings[LTX2].write_config(config))
    write_runs(path, layout, runs, {"config": header})
    return path.stat().st_size


def measure(folder: Path, config: ModelConfig, repeats: int) -> Figures:
    """Copy and convert a synthetic checkpoint in turns, and take the fastest of each.

    Args:
        folder: Empty folder for the files; twice the checkpoint must fit.
        config: The network.
        repeats: Runs of each kind.

    Raises:
        ValueError: The conversion failed.
    """
    require(repeats >= 1, "repeats", repeats, "must be at least 1")
    source, copy, out = folder / "checkpoint.safetensors", folder / "copy.safetensors", folder / "converted"
    size = make_checkpoint(source, config)
    copies, answers = [], []
    for _ in range(repeats):
        _flush()
        begin = time.monotonic()
        shutil.copyfile(source, copy)
        copies.append(time.monotonic() - begin)
        copy.unlink()
        _flush()
        answers.append(_convert(source, out))
        shutil.rmtree(out)
    return Figures(
        size=size,
        copy_s=min(copies),
        convert_s=min(answer["seconds"] for answer in answers),
        before=min(answer["before"] for answer in answers),
        peak=max(answer["peak"] for answer in answers),
    )


def _flush() -> None:
    """Let the system write what it holds, so that a run does not pay for the one before."""
    os.sync()


def _convert(source: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{source}: the conversion failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
