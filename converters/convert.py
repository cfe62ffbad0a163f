"""Sources into a weights folder of ours: found, checked, written beside their place, swapped in component by component.

A component's folder has what DESIGN 6 says, and for the way back:

    source.json           what it came from: format, naming, the header's metadata, config.json of formats that have one
    passed.safetensors    tensors that nobody here uses, under their own keys; all of them where there is no table yet
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.choices import Choices, choose_sampler
from converters.lora import fuse
from converters.meter import Meter
from converters.part import Part
from converters.piece import read_ahead
from converters.plan import Plan, plan_part
from converters.sources import find_parts
from converters.swap import check_space, staging, swap_in
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.io import atomic_write, weights
from omniforcing_jax.io.tensor_file import write_runs
from omniforcing_jax.pipeline import weights_folder

PASSED = "passed.safetensors"
SOURCE = "source.json"
RESOLUTION = (512, 768)  # LTX-2's and OmniForcing's own


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A conversion that was checked and is ready to run.

    Attributes:
        folder: Where it will be written.
        plans: Every component, by name.
        sampler: What makes the transformer a student; None for a teacher, or without a transformer.
        resolution: Height and width that the weights were trained at.
        name: What the folder is called in messages.
        notes: What was found, supposed and left, a line each.
    """

    folder: Path
    plans: dict[str, Plan]
    sampler: SamplerConfig | None
    resolution: tuple[int, int]
    name: str
    notes: tuple[str, ...]


def prepare(
    sources: Sequence[Path],
    folder: Path,
    choices: Choices,
    *,
    resolution: tuple[int, int] = RESOLUTION,
    loras: Sequence[tuple[Path, float]] = (),
) -> Conversion:
    """Find all components, later sources replacing earlier ones' component by component, and check everything.

    Args:
        sources: Files and folders.
        folder: Weights folder to write into; may hold other components already, which stay.
        choices: What the command says of the network.
        resolution: Height and width that the weights were trained at.
        loras: LoRA files to fuse into the transformer, and their strengths.

    Raises:
        ValueError: In one line, whatever is wrong.
    """
    _check_folder(folder, sources)
    parts: dict[str, Part] = {}
    notes: list[str] = []
    for source in sources:
        for part in find_parts(source, choices):
            if part.name in parts:
                notes.append(f"{part.name}: {part.where} replaces {parts[part.name].where}")
            parts[part.name] = part
    plans = {name: plan_part(part) for name, part in parts.items()}
    sampler, name = None, sources[-1].resolve().stem
    for plan in plans.values():
        notes += _describe(plan)
    if isinstance(config := parts["transformer"].config if "transformer" in parts else None, ModelConfig):
        sampler, told = choose_sampler(parts["transformer"].student, config.sinks, choices)
        notes += [f"sampler: {note}" for note in told]
        name = Path(parts["transformer"].where).resolve().stem
    for path, strength in loras:
        if "transformer" not in plans:
            raise ValueError(f"{path}: no transformer to fuse it into; give one with --from")
        plans["transformer"], told = fuse(plans["transformer"], path, strength)
        notes.append(f"transformer: {told}")
    check_space(folder, sum(plan.nbytes for plan in plans.values()))
    return Conversion(folder=folder, plans=plans, sampler=sampler, resolution=resolution, name=name, notes=tuple(notes))


def _check_folder(folder: Path, sources: Sequence[Path]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder to write into")
    if any(source.resolve() == folder.resolve() for source in sources):
        raise ValueError(f"{folder}: is a source as well")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise ValueError(f"{folder}: is neither empty nor a weights folder")


def _is_ours(folder: Path) -> bool:
    return (folder / weights.CONFIG).is_file() and "format" in weights.read_config(folder)


def _describe(plan: Plan) -> list[str]:
    """Say what was found of a component."""
    part, count = plan.part, sum(map(len, plan.runs.values()))
    found = f"{part.name}: {part.format}, {part.where}, {plan.nbytes / 1e9:.2f} GB"
    if part.component is None:
        return [f"{found}, {len(plan.passed)} tensors without a table go through untouched"]
    through = f", {len(plan.passed)} more go through untouched" if plan.passed else ""
    return [f"{found}, {count} tensors{through}", *(f"{part.name}: {note}" for note in part.notes)]


def run(conversion: Conversion) -> str:
    """Write every component and swap them in; returns how much and how fast, in words.

    Raises:
        ValueError: Values are not finite, or the file system fails; nothing is left behind then.
    """
    folder, plans = conversion.folder, conversion.plans
    total = sum(plan.nbytes for plan in plans.values())
    try:
        with staging(folder) as stage, Meter("converting", total) as meter:
            for name, plan in plans.items():
                _write_component(stage / name, plan, meter)
            for name in plans:
                swap_in(stage / name, folder / name)
            weights.write_config(folder, _top_config(conversion))
            return str(meter)
    except OSError as error:
        raise ValueError(f"{error.filename or folder}: {error.strerror}") from None


def _write_component(place: Path, plan: Plan, told: Callable[[int], None]) -> None:
    part = plan.part
    place.mkdir()
    if part.component is not None:
        write_runs(place / weights.MODEL, plan.layout, read_ahead(plan.layout, plan.read, told))
        atomic_write.write_json(place / weights.CONFIG, part.component.write_own(part.config))
    if plan.passed:
        layout = {key: (piece.dtype, piece.shape) for key, piece in plan.passed.items()}
        write_runs(place / PASSED, layout, read_ahead(layout, plan.read_passed, told))
    for file in part.files:
        shutil.copyfile(file, place / Path(file).name)
    atomic_write.write_json(place / SOURCE, describe_source(part))


def describe_source(part: Part) -> dict[str, Any]:
    """Return what is kept of a source for the way back, as JSON values."""
    return {
        "format": part.format,
        "naming": part.naming,
        "file": Path(part.where).name,
        "metadata": dict(part.metadata),
        "config": part.model_config,
    }


def _top_config(conversion: Conversion) -> dict[str, Any]:
    """Join what the folder's config says already with what was converted now."""
    folder, plans = conversion.folder, conversion.plans
    top = dict(weights.read_config(folder)) if _is_ours(folder) else {}
    elsewhere = {name: place for name, place in top.pop("components", {}).items() if name not in plans}
    if "transformer" in plans or not top:
        top |= {"format": weights_folder.FORMAT, "name": conversion.name, "resolution": list(conversion.resolution)}
        top.pop("sampler", None)
        if conversion.sampler is not None:
            top["sampler"] = conversion.sampler.to_dict()
    return top | ({"components": elsewhere} if elsewhere else {})
