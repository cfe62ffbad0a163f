"""The converters' command line: what can be asked, and how a bad request is answered.

    python -m converters convert --from PATH [--from PATH ...] --out DIR
    python -m converters export --from DIR --to ltx2|diffusers|omniforcing --out PATH
    python -m converters inspect PATH
    python -m converters diff PATH PATH
    python -m converters check --weights DIR --case PATH/NAME
    python -m converters bench [--layers L] [--json FILE]

Bad input is one line on stderr and exit code 2.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from omniforcing_jax.io.arguments import read_command


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert checkpoints into a weights folder; later sources replace earlier ones component by component."""

    from_: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(name="from")]
    """File or folder: LTX-2, OmniForcing (shards or .pt), diffusers, Gemma 3. May be given several times."""
    out: Path
    """Weights folder to write, or to put components into."""
    lora: tyro.conf.UseAppendAction[tuple[tuple[Path, float], ...]] = ()
    """LoRA file and its strength, to fuse into the transformer; may be given several times."""
    release: Literal["ltx2", "omniforcing"] | None = None
    """What files under original keys are; by default LTX-2 where their header has a config, else OmniForcing."""
    state: Literal["ema", "trained"] | None = None
    """Of a training checkpoint that has both: the averaged weights, or those last trained."""
    heads: int = 32
    """Heads of an OmniForcing network, which no file says."""
    rotary: Literal["split", "interleaved"] | None = None
    """Which channels one rotary angle turns, whatever the file says."""
    grid: Literal["float64", "float32"] | None = None
    """In what precision the rotary frequencies were computed, whatever the file says."""
    gate_multiplier: float | None = None
    """What sigma is multiplied with for the cross-modal gates, whatever the file says."""
    timesteps: Literal["own", "cross", "hybrid"] | None = None
    """Whose sigma drives the cross-modal modulation, whatever the file supposes."""
    layout: Literal["prefix", "fused"] | None = None
    """How a student cuts a clip into blocks; makes the network a student."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels of a student's steps, from 1 down to 0; makes the network a student."""
    horizon: int | None = None
    """Seconds of the clips that a student was trained on."""
    height: int = 512
    """Of the pictures that the weights were trained at, in pixels."""
    width: int = 768
    """Of the pictures that the weights were trained at, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a weights folder in another format."""

    from_: Annotated[Path, tyro.conf.arg(name="from")]
    """Weights folder."""
    to: Literal["ltx2", "diffusers", "omniforcing"]
    """The format."""
    out: Path
    """File (ending in .safetensors) or folder to write: LTX-2 is a file, diffusers a folder, OmniForcing either."""
    components: tuple[str, ...] = ()
    """What to write; by default all that the folder has."""
    rotary: Literal["split", "interleaved"] | None = None
    """Which channels one angle is to turn there; query and key rows are permuted, the function stays the same."""
    fresh_header: bool = False
    """Write header and config.json anew, even if the source's says something else."""
    shard_gigabytes: float = 5.0
    """Largest file, where the format has shards."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what is inside a file or folder: tensors, shapes, types, configs, and what can be run or is missing."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Weights folder, or anything that `convert` reads."""
    state: Literal["ema", "trained"] | None = None
    """Of a training checkpoint that has both: the averaged weights, or those last trained."""


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare two checkpoints of one kind; the exit code is 0 where they are the same and 1 where they differ."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Weights folder, or anything that `convert` reads."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """What to compare it with."""
    state: Literal["ema", "trained"] | None = None
    """Of training checkpoints that have both: the averaged weights, or those last trained."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Run a converted transformer on recorded activations; the exit code is 1 where an output is beyond its limit."""

    weights: Path
    """Weights folder."""
    case: Path
    """A recorded forward: its folder and name, without an ending."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a conversion beside a plain copy of the same synthetic checkpoint, at LTX-2.3's full widths."""

    layers: int = 4
    """Layers of the checkpoint; each is 0.8 GB."""
    repeats: int = 5
    """Pairs of a copy and a conversion; the median counts."""
    folder: Path | None = None
    """Where the files go for the time being; by default the system's temporary folder."""
    json: Path | None = None
    """File for the figures."""


COMMANDS: dict[str, type] = {each.__name__.lower(): each for each in (Convert, Export, Inspect, Diff, Check, Bench)}
Command = Convert | Export | Inspect | Diff | Check | Bench


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        command = read_command("converters", __doc__, COMMANDS, sys.argv[1:] if arguments is None else arguments)
        return prepare(command)()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def prepare(command: Command) -> Callable[[], int]:
    """Check a request; what comes back does the work and returns the exit code.

    Raises:
        ValueError: In one line, whatever is wrong with it.
    """
    from converters import commands

    return getattr(commands, f"prepare_{type(command).__name__.lower()}")(command)
