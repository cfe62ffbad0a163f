"""The flags of each command: one frozen value per command, one field per flag, one nested value per group of flags.

Docstrings are the help. A class's docstring ends with examples that can be pasted.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

PROGRAM = "omniforcing"  # the console script; in a checkout, `python -m converters` takes the same commands
WhichState = Literal["ema", "trained"]
Pairs = Literal["split", "interleaved"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read the sources."""

    release: Literal["ltx2", "omniforcing"] | None = None
    """What a transformer without a config is: LTX-2, or a student of OmniForcing."""
    state: WhichState | None = None
    """Weights to take from a training checkpoint that has both: averaged (ema), or last trained."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Settings of the transformer, in place of the file's or of those that its own code assumes."""

    heads: int = 32
    """Attention heads of an OmniForcing network; no file has the number."""
    rotary: Pairs | None = None
    """Channels that form a rotary pair: i and i + H/2 (split), or 2i and 2i + 1 (interleaved)."""
    grid: Literal["float64", "float32"] | None = None
    """Precision in which the rotary frequencies were computed in training."""
    gate_multiplier: float | None = None
    """Factor of sigma in the cross-modal gates."""
    timesteps: Literal["own", "cross", "hybrid"] | None = None
    """Stream whose sigma drives the cross-modal modulation: its own, the other's, or both (hybrid)."""
    camera_heads: int | None = None
    """Heads of camera attention; no file has the number, heads of 128 channels are assumed."""


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """The sampler section, which makes a network a streaming student; no file has it."""

    student: Literal["echowm-flash"] | None = None
    """Published student whose layout, window, noise levels and resolution these weights have."""
    layout: Literal["prefix", "prefix2", "fused"] | None = None
    """First block of a clip, in latents of picture and sound: 1 + 1 (prefix), 1 + 2 (prefix2) or 4 + 26 (fused)."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels of the denoising steps, from 1 down to 0."""
    horizon: int | None = None
    """Length of the training clips, in seconds."""


@dataclass(frozen=True, kw_only=True)
class ResolutionOptions:
    """Resolution that the weights were trained at."""

    height: int | None = None
    """Frame height in pixels; by default 512, or that of --student."""
    width: int | None = None
    """Frame width in pixels; by default 768, or that of --student."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Convert checkpoints into a weights folder. Later sources replace the components of earlier ones.

    Settings that a file lacks are assumed as its own code does; the command prints each of them.

    Examples:
        omniforcing convert --from ltx-2-19b-dev.safetensors --out weights/teacher
        omniforcing convert --from student.pt --state ema --out weights/student
        omniforcing convert --from ltx-2-19b-dev-fp8.safetensors --quantise float8 --out weights/teacher8
        omniforcing convert --from Lightricks/LTX-2:ltx-2-19b-dev.safetensors --out weights/teacher
    """

    from_: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(name="from")]
    """LTX-2, OmniForcing, diffusers, Gemma 3, GGUF, an upsampler: a path or OWNER/NAME[@REVISION][:FILE] on the hub."""
    out: Path
    """Weights folder to write; components in it that no source replaces stay."""
    lora: tyro.conf.UseAppendAction[tuple[tuple[Path, float], ...]] = ()
    """LoRA to fuse into transformer and connectors, and its strength; a file, or a name on the hub."""
    quantise: Annotated[Literal["int8", "float8"] | None, tyro.conf.arg(metavar="int8|float8")] = None
    """Write the transformer's large matrices in eight bits. Float8 matrices of a source are kept bit for bit."""
    source: SourceOptions = field(default_factory=SourceOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    student: StudentOptions = field(default_factory=StudentOptions)
    resolution: ResolutionOptions = field(default_factory=ResolutionOptions)


@dataclass(frozen=True, kw_only=True)
class ContentOptions:
    """What is written."""

    components: tuple[str, ...] = ()
    """Components to write, such as transformer; by default all that the format has room for in one file or folder."""
    rotary: Pairs | None = None
    """Kind of rotary pairs to write; query and key rows are permuted, the function stays the same."""
    fresh_header: bool = False
    """Write header and config.json from the native configs, even if the source's contradict them."""
    shard_gigabytes: float = 5.0
    """Size of the largest file, where the format has shards."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a weights folder in another format.

    Examples:
        omniforcing export --from weights/teacher --to diffusers --out pipeline/
        omniforcing export --from weights/teacher --to ltx2 --out back.safetensors
    """

    from_: Annotated[Path, tyro.conf.arg(name="from")]
    """Weights folder."""
    to: Literal["ltx2", "ltx2-text", "diffusers", "omniforcing"]
    """Format to write; ltx2-text is LTX-2.5's file of text encoder and text projection."""
    out: Path
    """File (.safetensors) or folder to write: LTX-2's are files, diffusers a folder, OmniForcing either."""
    content: ContentOptions = field(default_factory=ContentOptions)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Print components, tensors, shapes, types and configs of a file or folder, and which commands can run it.

    Examples:
        omniforcing inspect ltx-2-19b-dev.safetensors
        omniforcing inspect weights/student
        omniforcing inspect weights/student --verify
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Weights folder, or anything that `convert` reads."""
    state: WhichState | None = None
    """Weights to look at in a training checkpoint that has both: averaged (ema), or last trained."""
    verify: bool = False
    """Read all bytes of a weights folder, and compare them with the hashes in its manifest."""


@dataclass(frozen=True, kw_only=True)
class DiffOptions:
    """Compare two checkpoints of one kind. The exit code is 0 if they are the same, 1 if they differ.

    Examples:
        omniforcing diff omniforcing/ back/
    """

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Weights folder, or anything that `convert` reads."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Weights folder or source to compare it with."""
    state: WhichState | None = None
    """Weights to look at in training checkpoints that have both: averaged (ema), or last trained."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Run a converted transformer on recorded activations. The exit code is 1 if an output is beyond its limit.

    With --record a case is made first, by ltx-core or diffusers from the original checkpoint.

    Examples:
        omniforcing check --record ltx-core --from ltx-2-19b-dev.safetensors --case recordings/mine
        omniforcing check --weights weights/teacher --case recordings/mine
    """

    case: Path
    """Recorded forward, rollout or guided trajectory: its folder and name, without an ending."""
    weights: Path | None = None
    """Weights folder to check."""
    record: Literal["ltx-core", "diffusers"] | None = None
    """Library that makes the case: ltx-core from LTX-2's file, diffusers from a folder; in float32, on the CPU."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Original checkpoint to record, the one that was converted."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure a conversion against a plain copy of the same synthetic checkpoint, at LTX-2.3's full widths.

    Examples:
        python -m converters bench --layers 4 --json out/conversion.json
    """

    layers: int = 4
    """Layers of the checkpoint; each is 0.8 GB."""
    repeats: int = 5
    """Pairs of a copy and a conversion; the median counts."""
    folder: Path | None = None
    """Folder for the temporary files; by default the system's."""
    json: Path | None = None
    """File for the figures."""
