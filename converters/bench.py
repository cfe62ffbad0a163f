"""How fast a conversion is beside a plain copy, and how much memory it takes: measured on a synthetic checkpoint.

The checkpoint has LTX-2.3's full widths and few layers, so its tensors are as large as the real ones. Copies and
conversions run in pairs in a process of its own, in turns first and second, on one file system and with the file in the
system's cache; its memory is compared with that of the same process before it opens the file.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from converters import convert
from converters.choices import Choices
from converters.component import LTX2
from converters.piece import CHUNK
from converters.transformer import COMPONENT
from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.io.tensor_file import write_runs
from omniforcing_jax.pipeline.presets import LTX2_19B
from omniforcing_jax.strict_json import require

BFLOAT16 = np.dtype(jnp.bfloat16)
MEASURE = "import sys; from converters import bench; bench.race(*sys.argv[1:])"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; bytes and seconds.

    Attributes:
        size: Bytes of the checkpoint.
        copies_s: Times to copy the file.
        conversions_s: Times to convert it, each of one pair with the copy.
        before: Peak resident bytes of the converting process before it opens the file.
        peak: Its peak in the end.
    """

    size: int
    copies_s: tuple[float, ...]
    conversions_s: tuple[float, ...]
    before: int
    peak: int

    @property
    def share(self) -> float:
        """Speed of the conversion over the speed of the copy: the median of all pairs."""
        return statistics.median(copy / conversion for copy, conversion in zip(*self._times, strict=True))

    @property
    def _times(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.copies_s, self.conversions_s

    def __str__(self) -> str:
        """Say it in three lines."""
        copy, convert = map(statistics.median, self._times)
        size = self.size / 1e9
        return (
            f"checkpoint of {size:.2f} GB: copied in {copy:.2f} s, {size / copy:.2f} GB/s\n"
            f"converted in {convert:.2f} s, {size / convert:.2f} GB/s; {self.share:.0%} of the copy's speed, "
            f"the median of {len(self.copies_s)} pairs\n"
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
    """Copy and convert a synthetic checkpoint in turns.

    Args:
        folder: Empty folder for the files; twice the checkpoint must fit.
        config: The network.
        repeats: Pairs of runs.

    Raises:
        ValueError: The conversion failed.
    """
    require(repeats >= 1, "repeats", repeats, "must be at least 1")
    source = folder / "checkpoint.safetensors"
    size = make_checkpoint(source, config)
    command = [sys.executable, "-c", MEASURE, str(source), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{source}: the conversion failed: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    copies, conversions = (tuple(answer.pop(name)) for name in ("copies_s", "conversions_s"))
    return Figures(size=size, copies_s=copies, conversions_s=conversions, **answer)


def race(source: str, repeats: str) -> None:
    """Run the pairs and print what a `Figures` needs as JSON; the whole of the measured process."""
    path, times = Path(source), {"copies_s": [], "conversions_s": []}
    kinds = {"copies_s": _copy, "conversions_s": _convert}
    before = _peak()
    for pair in range(int(repeats)):
        for name in sorted(kinds, reverse=pair % 2 == 1):
            _prepare(path)
            begin = time.monotonic()
            made = kinds[name](path)
            times[name].append(time.monotonic() - begin)
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    print(json.dumps({**times, "before": before, "peak": _peak()}))


def _prepare(source: Path) -> None:
    """Let the system write what it holds, and give it memory: a virtual machine has to fetch what lay idle."""
    os.sync()
    _copy(source).unlink()


def _copy(source: Path) -> Path:
    return Path(shutil.copyfile(source, source.with_name("copy.safetensors")))


def _convert(source: Path) -> Path:
    out = source.with_name("converted")
    convert.run(convert.prepare([source], out, Choices()))
    return out


def _peak() -> int:
    """Peak resident memory of this program, in bytes: Linux hands the peak of `getrusage` on from parent to child."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
