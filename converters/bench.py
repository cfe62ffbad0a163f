"""Measure a conversion on a synthetic checkpoint: its speed relative to a plain copy, and its memory.

The checkpoint has LTX-2.3's full widths and few layers, so its tensors are as large as the real ones. Copies and
conversions run in pairs in a separate process, each first in every other pair, on one file system and with the file in
the system's cache. Memory is that process's peak, compared with its memory before it opens the file.
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

from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.io.tensor_file import write_runs
from omniforcing_jax.pipeline.presets import LTX2_19B
from omniforcing_jax.strict_json import require

from . import convert
from .component import LTX2
from .finite import CHUNK
from .formats.transformer import COMPONENT
from .overrides import Overrides

BFLOAT16 = np.dtype(jnp.bfloat16)
MEASURE = f"import sys; from {__package__} import bench; bench.race(*sys.argv[1:])"


@dataclass(frozen=True, kw_only=True)
class ConversionFigures:
    """Measured bytes and seconds.

    Attributes:
        size: Bytes of the checkpoint.
        copies_s: Times to copy the file.
        conversions_s: Times to convert it, each in one pair with a copy.
        before: Peak resident bytes of the converting process before it opens the file.
        peak: Its peak at the end.
    """

    size: int
    copies_s: tuple[float, ...]
    conversions_s: tuple[float, ...]
    before: int
    peak: int

    @property
    def share(self) -> float:
        """Speed of the conversion relative to the copy: the median over all pairs."""
        return statistics.median(copy / conversion for copy, conversion in zip(*self._times, strict=True))

    @property
    def _times(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.copies_s, self.conversions_s

    def __str__(self) -> str:
        """Return three lines for people."""
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
    """Write a checkpoint of random finite values in LTX-2's published form; returns its bytes."""
    placements = COMPONENT.expand(config, LTX2)
    layout = {p.source: (BFLOAT16, p.source_shape) for p in sorted(placements, key=lambda p: p.source)}
    pool = np.random.default_rng(0).integers(0, 0x4000, CHUNK, dtype=np.uint16).view(BFLOAT16)  # all below 2 in size

    def runs(name: str) -> Iterator[np.ndarray]:
        left = int(np.prod(layout[name][1]))
        while left:
            yield (run := pool[: min(left, pool.size)])
            left -= run.size

    header = json.dumps(COMPONENT.namings[LTX2].table.write(config))
    write_runs(path, layout, runs, {"config": header})
    return path.stat().st_size


def measure(folder: Path, config: ModelConfig, repeats: int) -> ConversionFigures:
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
    return ConversionFigures(size=size, copies_s=copies, conversions_s=conversions, **answer)


def race(source: str, repeats: str) -> None:
    """Run the pairs and print the fields of `ConversionFigures` as JSON; this is all that the measured process does."""
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
    """Let the system flush its buffers and take memory: a virtual machine has to fetch memory that was idle."""
    os.sync()
    _copy(source).unlink()


def _copy(source: Path) -> Path:
    return Path(shutil.copyfile(source, source.with_name("copy.safetensors")))


def _convert(source: Path) -> Path:
    out = source.with_name("converted")
    convert.run(convert.prepare([source], out, Overrides()))
    return out


def _peak() -> int:
    """Return peak resident bytes of this program; `getrusage` on Linux has the parent's peak as well, so ask /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
