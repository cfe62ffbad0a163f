"""A weights folder back into another format: checked, written beside its place, then swapped in.

A component that came from that format gets back its header and the tensors that passed through, so there and back is
bit-exact. What the format cannot express is refused. What it has no key for (timesteps, the sampler) is printed.
"""

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omniforcing_jax.config import CrossTimestep, ModelConfig, RotaryKind
from omniforcing_jax.io import atomic_write
from omniforcing_jax.io.folder_swap import is_empty, recover, require_space, staging, swapping_in
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.gemma_config import GemmaConfig

from . import text_file, text_projection
from .component import DIFFUSERS, HUGGING_FACE, LTX2, LTX2_TEXT, UPSAMPLER
from .formats import gemma
from .lazy_tensor import LazyTensor
from .ltx2_header import merge_header, refuse_contradiction
from .native_component import NativeComponent, open_weights_folder, rename_tensors
from .original_keys import ASSUMED_ROTARY, read_header_config
from .progress import ByteProgress
from .quantise import describe
from .registry import CLASSES, FOLDERS, PREFIXES, UPSAMPLERS
from .rotary_rows import permute_rotary
from .shards import TensorFiles, write_shards
from .text_version import version_of
from .tokenizer_files import TOKENIZERS
from .upsampler_file import is_upsampler, write_header

Target = Literal["ltx2", "ltx2-text", "diffusers", "omniforcing"]
PLAIN = {"format": "pt"}
INDEX = "model_index.json"
HOLDS = {
    "ltx2": (*PREFIXES, *UPSAMPLERS),
    "ltx2-text": ("text", "connectors"),
    "diffusers": tuple(FOLDERS.values()),
    "omniforcing": ("transformer", "connectors"),
}


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """An export that was checked and is ready to run.

    Attributes:
        out: File or folder to write.
        files: Everything to write.
        notes: What was left out, and what the format cannot say, a line each.
        shard_bytes: Largest file, where the format has shards.
    """

    out: Path
    files: tuple[TensorFiles, ...]
    notes: tuple[str, ...]
    shard_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.nbytes for each in self.files)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A component, and its tensors under the target's keys."""

    native: NativeComponent
    tensors: Mapping[str, LazyTensor]


def prepare(
    folder: Path,
    to: Target,
    out: Path,
    *,
    components: Sequence[str] = (),
    rotary: RotaryKind | None = None,
    fresh_header: bool = False,
    shard_bytes: int = 5_000_000_000,
) -> ExportPlan:
    """Open a weights folder and check that the format can express it.

    Args:
        folder: Weights folder.
        to: The format.
        out: File (LTX-2, its text encoder, OmniForcing in one) or folder (diffusers, OmniForcing in shards) to write.
        components: Components to write; empty for all.
        rotary: Kind of rotary pairs to write; query and key rows are permuted to that end.
        fresh_header: Write header and config.json from the native configs, even if the source's contradict them.
        shard_bytes: Largest file, where the format has shards.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    _check_out(out, to)
    found = open_weights_folder(folder)
    room = f"{to} has room for {', '.join(HOLDS[to])} only"
    for name in components:
        require(name in found, "components", name, f"must be in {folder}, which has {', '.join(found)}")
        require(name in HOLDS[to], "components", name, room)
    chosen = [native for name, native in found.items() if not components or name in components]
    natives = [native for native in chosen if native.name in HOLDS[to]]
    require(bool(natives), "to", to, f"{room}, and {folder} has {', '.join(found)}")
    if to == "ltx2-text":
        text_file.check({native.name: native for native in natives}, str(folder))
    notes = [f"{native.name}: left out, {room}" for native in chosen if native.name not in HOLDS[to]]
    if to == "ltx2":
        natives, left_out = _choose_file(natives, components)
        notes += left_out
    renamed = [_rename(native, to, RotaryKind.INTERLEAVED if to == "omniforcing" else rotary) for native in natives]
    notes += [note for each in renamed for note in _describe(each.native, to)]
    files = _plan_files(renamed, to, out, fresh_header or rotary is not None or to == "omniforcing")
    plan = ExportPlan(out=out, files=files, notes=tuple(notes), shard_bytes=shard_bytes)
    require_space(out, plan.nbytes)
    return plan


def _choose_file(
    natives: Sequence[NativeComponent], components: Sequence[str]
) -> tuple[list[NativeComponent], list[str]]:
    """Return what one LTX-2 file holds: one upsampler, or all else; and a note for each that is left out.

    Raises:
        ValueError: An upsampler was chosen beside other components.
    """
    own = [native for native in natives if is_upsampler(native)]
    others = [native for native in natives if not is_upsampler(native)]
    if len(own) == len(natives) == 1:
        return own, []
    rule = "LTX-2 has it in a file of its own; give --components with its name alone"
    require(not components or not own, "components", ", ".join(components), rule)
    require(bool(others), "components", "all", rule)
    return others, [f"{native.name}: left out, {rule}" for native in own]


def _check_out(out: Path, to: Target) -> None:
    is_file = out.suffix == ".safetensors"
    if out.is_dir() and not is_file:
        recover(out)  # of an export that was killed
    if os.path.lexists(out) and not (out.is_dir() and is_empty(out)):
        raise ValueError(f"{out}: exists already; choose another --out")
    (atomic_write.check_writable if is_file else atomic_write.check_folder_writable)(out)
    require(is_file or not to.startswith("ltx2"), "out", str(out), "must end in .safetensors")
    require(not is_file or to != "diffusers", "out", str(out), "must be a folder")


def _rename(native: NativeComponent, to: Target, rotary: RotaryKind | None) -> Renamed:
    """Give a component's tensors the target's keys and, if a kind is given, its rotary pairs that kind."""
    tensors = rename_tensors(native, _naming_of(native, to))
    if rotary is not None and (to != "omniforcing" or native.name == "transformer"):
        native, tensors = permute_rotary(native, rotary, tensors, _naming_of(native, to))
    if to == "ltx2-text":
        tensors = text_projection.select(native.name, tensors, projection=True)
        tensors |= text_file.pack_files(native) if native.name == "text" else {}
    elif to == "ltx2" and native.is_joined:
        tensors = text_projection.select(native.name, tensors, projection=False)
    return Renamed(native=native, tensors=tensors)


def _naming_of(native: NativeComponent, to: Target) -> str:
    """Return how a component's keys are spelled there; in a folder a text model keeps the naming that it came in."""
    if native.name != "text":
        return DIFFUSERS if to == "diffusers" else UPSAMPLER if is_upsampler(native) else LTX2
    if to == "ltx2-text":
        return LTX2_TEXT
    if native.naming is not None and native.naming.startswith(HUGGING_FACE):
        return native.naming
    is_newer = isinstance(native.config, GemmaConfig) and native.config.is_gemma_4
    return gemma.CURRENT if is_newer else HUGGING_FACE


def _describe(native: NativeComponent, to: Target) -> list[str]:
    notes = text_file.describe(native) if to == "ltx2-text" and native.name == "text" else []
    if to == "ltx2" and native.is_joined:
        notes.append("connectors: the text projection came in the text encoder's file; --to ltx2-text writes that")
    if native.passed and native.naming != _naming_of(native, to):
        notes.append(f"{native.name}: {len(native.passed)} tensors that passed through are not {to}'s, left out")
    if isinstance(native.config, ModelConfig):
        if native.config.eight_bits is not None:
            said = describe(native.config.eight_bits, native.config.layers)
            notes.append(f"transformer: {said} become wide again; what was lost in eight bits stays lost")
        timesteps, camera = native.config.cross_timestep, native.config.camera
        if camera is not None and to == "ltx2":
            notes.append(
                f"transformer: LTX-2's header has no key for camera attention; give --camera-heads {camera.heads}"
            )
        notes.append(f"transformer: no format has a key for --timesteps; these weights need {timesteps}")
        notes.append(
            "transformer: no format has a key for the sampler; give --student, or --layout, --sigmas and --horizon"
        )
    return notes


def _plan_files(renamed: Sequence[Renamed], to: Target, out: Path, fresh: bool) -> tuple[TensorFiles, ...]:
    """List the files that will be written; see `prepare`."""
    if to == "diffusers":
        return tuple(_plan_diffusers(each, fresh) for each in renamed)
    tensors = {key: tensor for each in renamed for key, tensor in each.tensors.items()}
    natives = [each.native for each in renamed]
    if to == "ltx2-text":
        (text,) = (native for native in natives if native.name == "text")
        metadata = text_file.make_metadata(text, fresh)
        return (TensorFiles(folder="", stem=out.stem, tensors=tensors, metadata=metadata),)
    if to == "omniforcing":
        for native in natives:
            if isinstance(native.config, ModelConfig):
                _check_omniforcing(native.config)
        return (TensorFiles(folder="", stem=out.stem if out.suffix else "model", tensors=tensors, metadata=PLAIN),)
    if is_upsampler(natives[0]):
        metadata = write_header(natives[0], fresh)
        return (TensorFiles(folder="", stem=out.stem, tensors=tensors, metadata=metadata),)
    for native in natives:
        header = read_header_config(native.folder, native.metadata) if native.naming == LTX2 else None
        if native.component is not None and header is not None and not fresh:
            refuse_contradiction(native, native.component.namings[LTX2].table, header)
    return (TensorFiles(folder="", stem=out.stem, tensors=tensors, metadata=merge_header(natives, fresh)),)


def _check_omniforcing(config: ModelConfig) -> None:
    """Refuse settings that OmniForcing's code, which reads no config, would have otherwise."""
    rotary, assumed = config.rotary.to_dict(), ASSUMED_ROTARY.to_dict()
    rule = "OmniForcing's code reads no config and assumes"
    require(config.gate_multiplier == 1, "gate_multiplier", config.gate_multiplier, f"{rule} 1")
    require(config.cross_timestep is CrossTimestep.OWN, "cross_timestep", config.cross_timestep.value, f"{rule} own")
    require(not config.gated_attention, "gated_attention", True, f"{rule} none")
    require(not config.text_adaln, "text_adaln", True, f"{rule} none")
    require(config.camera is None, "camera", True, f"{rule} none")
    require(not config.keyframe_embedding, "keyframe_embedding", True, f"{rule} none")
    for name, stream in (("video", config.video), ("audio", config.audio)):
        require(stream.mlp_bias, f"{name}.mlp_bias", False, f"{rule} one")
    for name in ("grid", "theta", "max_seconds", "max_pixels"):
        require(rotary[name] == assumed[name], f"rotary.{name}", rotary[name], f"{rule} {assumed[name]}")


def _plan_diffusers(renamed: Renamed, fresh: bool) -> TensorFiles:
    """Plan one subfolder of a diffusers pipeline."""
    native = renamed.native
    naming = _naming_of(native, "diffusers")
    is_from_there = native.naming == naming
    model_config = saved = native.source.get("config") if is_from_there else None
    if native.component is not None:
        table = native.component.namings[naming].table
        if saved is not None and not fresh:
            refuse_contradiction(native, table, saved)
        else:
            model_config = (saved or {}) | version_of(native.source) | table.write(native.config)
    is_text = native.name == "text"
    return TensorFiles(
        folder=next(folder for folder, name in FOLDERS.items() if name == native.name),
        stem="model" if is_text else "diffusion_pytorch_model",
        tensors=renamed.tensors,
        metadata=native.metadata or PLAIN if is_from_there else PLAIN,
        model_config=model_config,
        tokenizer=tuple(path for name in TOKENIZERS if is_text and (path := native.folder / name).is_file()),
    )


def run(plan: ExportPlan) -> str:
    """Write everything and swap it in. Returns bytes, seconds and rate, in words.

    Raises:
        ValueError: The file system fails. Nothing is left behind then.
    """
    is_file = plan.out.suffix == ".safetensors"
    place = staging(plan.out.parent) if is_file else swapping_in(plan.out, _indexes(plan))
    try:
        with place as stage, ByteProgress("exporting", plan.nbytes) as progress:
            for files in plan.files:
                write_shards(stage / files.folder, files, plan.nbytes if is_file else plan.shard_bytes, progress)
                for file in files.tokenizer:
                    (stage / "tokenizer").mkdir(exist_ok=True)
                    shutil.copyfile(file, stage / "tokenizer" / file.name)
            if any(files.folder for files in plan.files):
                atomic_write.write_json(stage / INDEX, _model_index(plan.files))
            if is_file:
                _place(stage / plan.out.name, plan.out)
            return str(progress)
    except OSError as error:
        raise ValueError(f"{error.filename or plan.out}: {error.strerror}") from None


def _place(new: Path, out: Path) -> None:
    """Give a file its name, unless somebody has taken that meanwhile.

    Raises:
        FileExistsError: Somebody has.
    """
    with new.open("rb") as file:
        os.fsync(file.fileno())
    if os.path.lexists(out):
        raise FileExistsError(errno.EEXIST, "exists already; choose another --out", str(out))
    os.rename(new, out)


def _indexes(plan: ExportPlan) -> list[str]:
    """Name the files by which readers know a folder; they come last."""
    return [*(f"{files.stem}.safetensors.index.json" for files in plan.files if not files.folder), INDEX]


def _model_index(files: Sequence[TensorFiles]) -> dict[str, Any]:
    """Name the class of every component, as diffusers' pipelines want it."""
    classes: dict[str, Any] = {"_class_name": "LTX2Pipeline"}
    for each in files:
        values = each.model_config or {}
        if FOLDERS[each.folder] in UPSAMPLERS:  # of pipelines of their own
            continue
        named, architectures = values.get("_class_name"), values.get("architectures") or [None]
        classes[each.folder] = ["diffusers", named] if named in CLASSES else ["transformers", architectures[0]]
    return classes
