"""Sources into a weights folder: found, checked, written beside their place, swapped in component by component.

The folder's form is described in omniforcing_jax's module on weights, and a component's files for the way back in
native_component.py.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omniforcing_jax.config import EightBitKind, EightBits, ModelConfig, SamplerConfig
from omniforcing_jax.io import atomic_write, manifest, weights
from omniforcing_jax.io.folder_swap import is_empty, recover, require_space
from omniforcing_jax.io.tensor_file import write_runs
from omniforcing_jax.pipeline import weights_folder
from omniforcing_jax.strict_json import as_texts, read_object, require

from . import text_projection
from .hash_aside import HashAside
from .hub.download import name_of
from .lora.fuse import fuse_lora
from .missing_config import complete
from .native_component import EXTRACTS, JOINED, PASSED, SOURCE, is_weights_folder
from .open_source import list_components
from .overrides import Overrides, choose_sampler, refuse_without_network
from .plan import Plan, plan_component
from .progress import ByteProgress
from .quantise import choose, quantise_plan
from .read_ahead import BlockReader, read_ahead
from .source_component import SourceComponent
from .text_version import check_text_model
from .tokenizer_files import TOKENIZERS
from .wide_tables import note_tables

RESOLUTION = (512, 768)  # height and width of LTX-2's and OmniForcing's training clips


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A conversion that was checked and is ready to run.

    Attributes:
        folder: Weights folder to write.
        plans: Every component, by name.
        sampler: The sampler section of a student; None for a teacher, or without a transformer.
        resolution: Height and width that the weights were trained at, in pixels.
        name: Name of the folder in messages.
        notes: What was found, assumed and left out, a line each.
    """

    folder: Path
    plans: dict[str, Plan]
    sampler: SamplerConfig | None
    resolution: tuple[int, int]
    name: str
    notes: tuple[str, ...]


def prepare(
    paths: Sequence[Path],
    folder: Path,
    overrides: Overrides,
    *,
    resolution: tuple[int, int] = RESOLUTION,
    loras: Sequence[tuple[Path, float]] = (),
    quantise: EightBitKind | None = None,
) -> Conversion:
    """Open all sources and check everything. Later sources replace the components of earlier ones.

    Args:
        paths: Files and folders to convert.
        folder: Weights folder to write. Components in it that no source replaces stay.
        overrides: Settings given on the command line.
        resolution: Height and width that the weights were trained at, in pixels.
        loras: LoRA files to fuse into the transformer, and their strengths.
        quantise: What the transformer's large matrices become; None leaves them as they are.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    _check_folder(folder, paths)
    sources, notes = _open_all(paths, overrides)
    check_text_model(sources, folder)
    plans = {name: note_tables(plan_component(source)) for name, source in sources.items()}
    notes += [note for plan in plans.values() for note in _describe(plan)]
    sampler, name = None, name_of(paths[-1])
    transformer = sources.get("transformer")
    if transformer is not None and isinstance(config := transformer.config, ModelConfig):
        fits, rule = overrides.student is None or config.camera is not None, "these weights have no camera attention"
        require(fits, "student", overrides.student, rule)
        sampler, settings = choose_sampler(transformer.is_student, config.sinks, overrides)
        notes += [f"sampler: {setting}" for setting in settings]
        name = name_of(Path(transformer.where))
    else:
        refuse_without_network(overrides, plans)
    chosen = None if quantise is None else _choose_eight_bits(plans, quantise)
    for path, strength in loras:
        plans, fused = fuse_lora(plans, path, strength)
        notes += fused
    if chosen is not None:
        plans["transformer"], said = quantise_plan(plans["transformer"], chosen)
        notes += said
    _check_replaced(folder, list(plans))
    text_projection.check_replaced(folder, sources.values())
    require_space(folder, sum(plan.nbytes for plan in plans.values()))
    return Conversion(folder=folder, plans=plans, sampler=sampler, resolution=resolution, name=name, notes=tuple(notes))


def _choose_eight_bits(plans: Mapping[str, Plan], kind: EightBitKind) -> EightBits:
    has_network = "transformer" in plans
    require(has_network, "quantise", kind.value, f"needs a transformer, the sources have {', '.join(plans)}")
    return choose(plans["transformer"], kind)


def _check_folder(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse a folder that is no place for weights; clear away what a conversion that was killed has left in it."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; choose a folder for --out")
    if any(os.path.realpath(path) == os.path.realpath(folder) for path in paths):
        raise ValueError(f"{folder}: is one of the sources; choose another --out")
    atomic_write.check_folder_writable(folder)
    if not folder.is_dir():
        return
    recover(folder)
    if not is_empty(folder) and not is_weights_folder(folder):
        raise ValueError(f"{folder}: is neither empty nor a weights folder; choose another --out")
    if is_weights_folder(folder):
        weights_folder.read_top(folder)


def _check_replaced(folder: Path, names: Sequence[str]) -> None:
    """Refuse to replace what no conversion wrote: links to components, and files that somebody put beside theirs."""
    for place in (folder / name for name in names if os.path.lexists(folder / name)):
        if place.is_symlink() or not place.is_dir():
            raise ValueError(f"{place}: is a link or a file, and would be replaced; choose another --out")
        known = {weights.MODEL, weights.CONFIG, PASSED, SOURCE, *TOKENIZERS, *_list_extracts(place)}
        for path in sorted(place.iterdir()):
            is_left = any(path.name.startswith(f".{name}.") for name in known)  # half written by a killed process
            if path.is_dir() or (path.name not in known and not is_left):
                raise ValueError(f"{path}: is of no conversion, and would be removed; move it away")


def _list_extracts(place: Path) -> tuple[str, ...]:
    """List the further files of a component that was converted."""
    path = place / SOURCE
    return as_texts(read_object(path).get(EXTRACTS, []), f"{path}: {EXTRACTS}") if path.is_file() else ()


def _open_all(paths: Sequence[Path], overrides: Overrides) -> tuple[dict[str, SourceComponent], list[str]]:
    """Return the last source of each component, and a note for each one that was replaced."""
    sources: dict[str, SourceComponent] = {}
    whole: dict[str, SourceComponent] = {}
    notes = []
    for path in paths:
        for found in list_components(path, overrides):
            earlier = sources.get(found.name)
            source = text_projection.join(found, earlier)
            if not text_projection.is_part(source):
                whole[source.name] = source = complete(source, earlier, overrides)
            if earlier is not None and not source.is_joined:
                notes.append(f"{source.name}: {source.where} replaces {earlier.where}")
            sources[source.name] = source
    parts = {name: each for name, each in sources.items() if text_projection.is_part(each)}
    text_projection.check_earlier(parts, whole)
    return sources | {name: text_projection.pass_through(each) for name, each in parts.items()}, notes


def _describe(plan: Plan) -> list[str]:
    """List what was found of a component."""
    source, count = plan.source, sum(map(len, plan.placed.values()))
    found = f"{source.name}: {source.format}, {source.where}, {plan.nbytes / 1e9:.2f} GB"
    if source.component is None:
        said = [f"{source.name}: {note}" for note in source.notes]
        return [f"{found}, {len(plan.passed)} tensors without a table pass through untouched", *said]
    passed = f", {len(plan.passed)} more pass through untouched" if plan.passed else ""
    return [f"{found}, {count} tensors{passed}", *(f"{source.name}: {note}" for note in source.notes)]


def run(conversion: Conversion) -> str:
    """Write every component and swap them in. Returns bytes, seconds and rate, in words.

    Raises:
        ValueError: Values are not finite, or the file system fails. Nothing is left behind then.
    """
    folder, plans = conversion.folder, conversion.plans
    total = sum(plan.nbytes for plan in plans.values())
    try:
        with weights_folder.replacing_components(folder) as stage, ByteProgress("converting", total) as progress:
            listed = {name: _write_component(stage / name, plan, progress) for name, plan in plans.items()}
            manifest.write(stage, listed)
            weights.write_config(stage, _top_config(conversion))
            return str(progress)
    except OSError as error:
        raise ValueError(f"{error.filename or folder}: {error.strerror}") from None


def _write_component(folder: Path, plan: Plan, count_bytes: Callable[[int], None]) -> manifest.Files:
    """Write a component's files; returns how the manifest lists them."""
    source, hashes = plan.source, {}
    folder.mkdir()
    if source.component is not None:
        blocks = read_ahead(plan.layout, plan.read, count_bytes)
        hashes[weights.MODEL] = _write_hashed(folder / weights.MODEL, plan.layout, blocks)
        atomic_write.write_json(folder / weights.CONFIG, source.config.to_dict())
    if plan.passed:
        layout = {key: (tensor.dtype, tensor.shape) for key, tensor in plan.passed.items()}
        hashes[PASSED] = _write_hashed(folder / PASSED, layout, read_ahead(layout, plan.read_passed, count_bytes))
    for file in source.files:
        shutil.copyfile(file, folder / Path(file).name)
    for name, tensor in source.extracts.items():
        (folder / name).write_bytes(tensor.load().tobytes())
    atomic_write.write_json(folder / SOURCE, _describe_source(source))
    return manifest.describe(folder, hashes=hashes)


def _write_hashed(path: Path, layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]], blocks: BlockReader) -> str:
    with HashAside() as aside:
        write_runs(path, layout, blocks, hashed=aside)
        return aside.hexdigest()


def _describe_source(source: SourceComponent) -> dict[str, Any]:
    """Return what is kept of a source for the way back, as JSON values."""
    return {
        "format": source.format,
        "naming": source.naming,
        "file": Path(source.where).name,
        "metadata": dict(source.metadata),
        "config": source.model_config,
        EXTRACTS: sorted(source.extracts),
        JOINED: source.is_joined,
    }


def _top_config(conversion: Conversion) -> dict[str, Any]:
    """Return the folder's new config: what it says already, and what was converted now."""
    folder, plans = conversion.folder, conversion.plans
    top = weights_folder.read_top(folder) if is_weights_folder(folder) else {}
    elsewhere = {name: path for name, path in top.pop("components", {}).items() if name not in plans}
    if "transformer" in plans or not top:
        top |= {"format": weights_folder.FORMAT, "name": conversion.name, "resolution": list(conversion.resolution)}
        top.pop("sampler", None)
        if conversion.sampler is not None:
            top["sampler"] = conversion.sampler.to_dict()
    return top | ({"components": elsewhere} if elsewhere else {})
