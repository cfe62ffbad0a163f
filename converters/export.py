"""Our weights folder back into another format: checked, written beside its place, then swapped in.

A component that came from that format has its header and what went through put back, so there and back is bit-exact.
What the format cannot express is refused; what it has no word for (whose sigma, the sampler) is said.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from converters.checkpoint import SUPPOSED, read_header_config
from converters.component import DIFFUSERS, HUGGING_FACE, LTX2
from converters.headers import contradiction, merge_header
from converters.meter import Meter
from converters.own import Own, open_own, rename_out, turn_rotary
from converters.piece import Piece, read_ahead
from converters.registry import CLASSES, FOLDERS, PREFIXES
from converters.sources import TOKENIZERS
from converters.swap import check_space, staging
from omniforcing_jax.config import CrossTimestep, ModelConfig, RotaryKind
from omniforcing_jax.io import atomic_write
from omniforcing_jax.io.tensor_file import DTYPES, write_runs
from omniforcing_jax.strict_json import require

Target = Literal["ltx2", "diffusers", "omniforcing"]
# The safetensors package writes types in this order, and names of a type in alphabetical order.
TYPES = (
    "U64",
    "I64",
    "F64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "BOOL",
)
RANKS = {DTYPES[name]: rank for rank, name in enumerate(TYPES)}
PLAIN = {"format": "pt"}
HOLDS = {
    "ltx2": tuple(PREFIXES),
    "diffusers": tuple(FOLDERS.values()),
    "omniforcing": ("transformer", "connectors"),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """One set of tensors to write.

    Attributes:
        folder: Where, relative to the output; "" for itself.
        stem: What the files are called, without shard numbers and ending.
        tensors: By key.
        metadata: Of each file's header.
        model_config: What goes into config.json; None for formats without one.
        tokenizer: Files for the folder `tokenizer`.
    """

    folder: str
    stem: str
    tensors: Mapping[str, Piece]
    metadata: Mapping[str, str]
    model_config: Mapping[str, Any] | None = None
    tokenizer: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that was checked and is ready to run."""

    out: Path
    outputs: tuple[Output, ...]
    notes: tuple[str, ...]
    shard_bytes: int


def prepare(
    folder: Path,
    to: Target,
    out: Path,
    *,
    components: Sequence[str] = (),
    rotary: RotaryKind | None = None,
    fresh_header: bool = False,
    shard_bytes: int = 5_000_000_000,
) -> Export:
    """Open a weights folder and check that the format can express it.

    Args:
        folder: Weights folder.
        to: The format.
        out: File (LTX-2, OmniForcing in one) or folder (diffusers, OmniForcing in shards) to write.
        components: What to write; empty for all.
        rotary: Which channels one angle is to turn there; query and key rows are permuted to that end.
        fresh_header: Write header and config.json from our configs, even if the source's contradicts them.
        shard_bytes: Largest file, where the format has shards.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already")
    single = out.suffix == ".safetensors"
    require(single or to != "ltx2", "out", str(out), "must end in .safetensors")
    require(not single or to != "diffusers", "out", str(out), "must be a folder")
    owns = _choose(folder, open_own(folder), components)
    naming = DIFFUSERS if to == "diffusers" else LTX2
    notes = []
    for name in [name for name in owns if name not in HOLDS[to]]:
        require(name not in components, "components", name, f"{to} holds {', '.join(HOLDS[to])}")
        notes.append(f"{name}: left out, {to} holds {', '.join(HOLDS[to])}")
        del owns[name]
    tensors: dict[str, dict[str, Piece]] = {}
    for name, own in owns.items():
        pieces = rename_out(own, _naming_of(own, naming))
        wanted = RotaryKind.INTERLEAVED if to == "omniforcing" else rotary
        if wanted is not None and (to != "omniforcing" or name == "transformer"):
            owns[name], pieces = turn_rotary(own, wanted, pieces, naming)
        tensors[name] = pieces
    notes += [note for own in owns.values() for note in _describe(own, naming, to)]
    turned = rotary is not None or to == "omniforcing"
    outputs = _plan_outputs(owns, tensors, to, out, fresh_header or turned)
    check_space(out, sum(piece.nbytes for output in outputs for piece in output.tensors.values()))
    return Export(out=out, outputs=outputs, notes=tuple(notes), shard_bytes=shard_bytes)


def _naming_of(own: Own, naming: str) -> str:
    """Return how a component is spelled there; a text model keeps the form of Hugging Face's that it came in."""
    if own.name != "text":
        return naming
    return own.naming if own.naming is not None and own.naming.startswith(HUGGING_FACE) else HUGGING_FACE


def _choose(folder: Path, owns: dict[str, Own], components: Sequence[str]) -> dict[str, Own]:
    for name in components:
        require(name in owns, "components", name, f"{folder} has {', '.join(owns)}")
    return {name: own for name, own in owns.items() if not components or name in components}


def _describe(own: Own, naming: str, to: Target) -> list[str]:
    notes = []
    if own.passed is not None and own.naming != _naming_of(own, naming):
        notes.append(f"{own.name}: {len(own.passed.entries)} tensors that went through untouched are not {to}'s")
    if isinstance(own.config, ModelConfig):
        notes.append(
            f"transformer: no file says whose sigma drives the crossings; here it is {own.config.cross_timestep}"
        )
        notes.append("transformer: no file says the sampler; give layout, sigmas and horizon when converting again")
    return notes


def _plan_outputs(
    owns: Mapping[str, Own], tensors: Mapping[str, Mapping[str, Piece]], to: Target, out: Path, fresh: bool
) -> tuple[Output, ...]:
    """Say which files there will be; see `prepare`."""
    if to == "diffusers":
        return tuple(_diffusers(own, tensors[name], fresh) for name, own in owns.items())
    joined = {key: piece for pieces in tensors.values() for key, piece in pieces.items()}
    if to == "omniforcing":
        for own in owns.values():
            if isinstance(own.config, ModelConfig):
                _check_omniforcing(own.config)
        return (Output(folder="", stem=out.stem if out.suffix else "model", tensors=joined, metadata=PLAIN),)
    for own in owns.values():
        header = read_header_config(own.place, own.metadata) if own.naming == LTX2 else None
        if own.component is not None and header is not None and not fresh:
            _refuse_contradiction(own, contradiction(own.component.namings[LTX2], header, own.config))
    return (Output(folder="", stem=out.stem, tensors=joined, metadata=merge_header(owns.values(), fresh)),)


def _refuse_contradiction(own: Own, what: str | None) -> None:
    if what is not None:
        rule = "convert without overrides, or write a new header with --fresh-header"
        raise ValueError(f"{own.place}: the source's header contradicts the config, {what}; {rule}")


def _check_omniforcing(config: ModelConfig) -> None:
    """Refuse what OmniForcing's code, which reads no config, would compute differently."""
    rotary, wanted = config.rotary.to_dict(), SUPPOSED.to_dict()
    rule = "OmniForcing's code reads no config and supposes"
    require(config.gate_multiplier == 1, "gate_multiplier", config.gate_multiplier, f"{rule} 1")
    require(config.cross_timestep is CrossTimestep.OWN, "cross_timestep", config.cross_timestep.value, f"{rule} own")
    require(not config.gated_attention, "gated_attention", True, f"{rule} none")
    require(not config.text_adaln, "text_adaln", True, f"{rule} none")
    for name in ("grid", "theta", "max_seconds", "max_pixels"):
        require(rotary[name] == wanted[name], f"rotary.{name}", rotary[name], f"{rule} {wanted[name]}")


def _diffusers(own: Own, tensors: Mapping[str, Piece], fresh: bool) -> Output:
    folder = next(folder for folder, name in FOLDERS.items() if name == own.name)
    naming = _naming_of(own, DIFFUSERS)
    saved = own.source.get("config") if own.naming == naming else None
    values = saved
    if own.component is not None:
        table = own.component.namings[naming]
        if saved is not None and not fresh:
            _refuse_contradiction(own, contradiction(table, saved, own.config))
        else:
            values = (saved or {}) | table.write_config(own.config)
    stem = "model" if own.name == "text" else "diffusion_pytorch_model"
    metadata = own.metadata or PLAIN if own.naming == naming else PLAIN
    beside = [own.place / name for name in TOKENIZERS if own.name == "text" and (own.place / name).is_file()]
    return Output(
        folder=folder, stem=stem, tensors=tensors, metadata=metadata, model_config=values, tokenizer=tuple(beside)
    )


def run(export: Export) -> str:
    """Write everything and swap it in; returns how much and how fast, in words.

    Raises:
        ValueError: The file system fails; nothing is left behind then.
    """
    total = sum(piece.nbytes for output in export.outputs for piece in output.tensors.values())
    single = export.out.suffix == ".safetensors"
    try:
        with staging(export.out.parent if single else export.out) as stage, Meter("exporting", total) as meter:
            for output in export.outputs:
                _write(stage / output.folder, output, total if single else export.shard_bytes, meter)
                for file in output.tokenizer:
                    (stage / "tokenizer").mkdir(exist_ok=True)
                    shutil.copyfile(file, stage / "tokenizer" / file.name)
            if any(output.folder for output in export.outputs):
                atomic_write.write_json(stage / "model_index.json", _model_index(export.outputs))
            for entry in sorted(stage.iterdir()):
                os.replace(entry, export.out if single else export.out / entry.name)
            return str(meter)
    except OSError as error:
        raise ValueError(f"{error.filename or export.out}: {error.strerror}") from None


def _write(folder: Path, output: Output, shard_bytes: int, told: Callable[[int], None]) -> None:
    folder.mkdir(exist_ok=True)
    shards = _cut(output.tensors, shard_bytes)
    places: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        marks = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"{output.stem}{marks}.safetensors"
        places |= dict.fromkeys(keys, name)
        layout = {key: (output.tensors[key].dtype, output.tensors[key].shape) for key in keys}
        runs = read_ahead(keys, lambda key: output.tensors[key].blocks(), told)
        write_runs(folder / name, layout, runs, output.metadata)
    if len(shards) > 1:
        size = sum(piece.nbytes for piece in output.tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        atomic_write.write_json(folder / f"{output.stem}.safetensors.index.json", index)
    if output.model_config is not None:
        atomic_write.write_json(folder / "config.json", output.model_config)


def _cut(tensors: Mapping[str, Piece], shard_bytes: int) -> list[list[str]]:
    """Order keys as the safetensors package does, widest types first and then by name, and cut them into files."""
    keys = sorted(tensors, key=lambda key: (RANKS[tensors[key].dtype], key))
    shards: list[list[str]] = [[]]
    filled = 0
    for key in keys:
        if shards[-1] and filled + tensors[key].nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += tensors[key].nbytes
    return shards


def _model_index(outputs: Sequence[Output]) -> dict[str, Any]:
    """Name the class of every component, as diffusers' pipelines want it."""
    classes: dict[str, Any] = {"_class_name": "LTX2Pipeline"}
    for output in outputs:
        values = output.model_config or {}
        named = values.get("_class_name")
        is_diffusers = named in CLASSES
        architectures = values.get("architectures") or [None]
        classes[output.folder] = ["diffusers", named] if is_diffusers else ["transformers", architectures[0]]
    return classes
