"""LoRA files fused into the tensors that they change: W + strength * scale * B A, in float32, in the type of W.

Source: ltx-core@1.0.0:loader/fuse_loras.py.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omniforcing_jax.strict_json import require

from ..lazy_tensor import LazyTensor
from ..plan import PlacedTensor, Plan
from .keys import Module, Role, find_file
from .names import CHANGED, Place, find_place, list_places, refuse_two
from .scale import read_scaled


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is added to one tensor.

    Attributes:
        name: The module, for messages.
        scale: Factor, with the strength.
        factors: The matrices whose product is added, first to last; a lone tensor is added itself.
    """

    name: str
    scale: float
    factors: tuple[LazyTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is added."""
        first, last = self.factors[0], self.factors[-1]
        return last.shape if first is last else (first.shape[0], last.shape[1])

    def compute(self) -> np.ndarray:
        """Compute it, in float32."""
        first, *others = (np.asarray(factor.load()).astype(np.float32) for factor in self.factors)
        scaled = first * np.float32(self.scale)
        return scaled @ others[0] if others else scaled


def fuse_lora(plans: Mapping[str, Plan], path: Path, strength: float) -> tuple[dict[str, Plan], list[str]]:
    """Fuse a LoRA into the components that are about to be written.

    Args:
        plans: The components, from any format.
        path: The LoRA, or a folder with only that.
        strength: Factor of its change.

    Returns:
        The plans with changed tensors, and notes of what was done.

    Raises:
        ValueError: The file is damaged, of another kind or of unclear scale, or a module is not in this network or has
            another shape; names file and key.
    """
    require(bool(np.isfinite(strength)), "lora strength", strength, "must be a finite number")
    path = find_file(path)
    _check_plans(plans, path)
    scaled, places = read_scaled(path), list_places(plans)
    changes: dict[Place, list[Change]] = defaultdict(list)
    factors = Counter((origin, scale) for _, scale, origin in scaled)
    for module, scale, _ in scaled:
        for leaf, change in _list_changes(module, scale, strength):
            place = find_place(path, module.name, leaf, places)
            refuse_two(path, module.name, (one.name for one in changes[place]))
            changes[place].append(change)
    fused = {name: _fuse_plan(plan, changes, path) for name, plan in plans.items()}
    counts = Counter(place.component for place in changes)
    notes = [f"{name}: {path} fused at {strength:g} into {count} tensors" for name, count in sorted(counts.items())]
    return fused, notes + [
        f"{path}: scale {scale:g} of {n} modules, {origin}" for (origin, scale), n in factors.items()
    ]


def _check_plans(plans: Mapping[str, Plan], path: Path) -> None:
    """Check that there is a network to fuse into; connectors of which only a part is here have no table, and stay."""
    if not any(plans[name].source.component for name in CHANGED if name in plans):
        raise ValueError(f"{path}: no transformer to fuse it into; give one with --from")


def _list_changes(module: Module, scale: float, strength: float) -> list[tuple[str, Change]]:
    """List what a module of the file adds to its weight and to its bias."""
    tensors, scaled = module.tensors, scale * strength
    pairs: Sequence[tuple[str, float, tuple[Role, ...]]] = (
        ("weight", scaled, (Role.UP, Role.DOWN)),
        ("bias", scaled, (Role.UP_BIAS,)),
        ("weight", strength, (Role.DIFF,)),
        ("bias", strength, (Role.DIFF_BIAS,)),
    )
    return [
        (leaf, Change(name=module.name, scale=factor, factors=tuple(tensors[role] for role in roles)))
        for leaf, factor, roles in pairs
        if roles[0] in tensors
    ]


def _fuse_plan(plan: Plan, changes: Mapping[Place, Sequence[Change]], path: Path) -> Plan:
    name = plan.source.name
    placed = {
        native: tuple(_fuse(one, changes.get(Place(name, native, one.placement.layer), ()), path) for one in each)
        for native, each in plan.placed.items()
    }
    return dataclasses.replace(plan, placed=placed)


def _fuse(one: PlacedTensor, changes: Sequence[Change], path: Path) -> PlacedTensor:
    if not changes:
        return one
    tensor = one.tensor
    for change in changes:
        if change.shape != tensor.shape:
            where = f"{path}: the change of {change.name}"
            raise ValueError(f"{where} has shape {change.shape}, {one.placement.source} has {tensor.shape}")
    fused = dataclasses.replace(tensor.map(_adder(tensor.dtype, changes)), where=f"{tensor.where} with {path}")
    return dataclasses.replace(one, tensor=fused)


def _adder(dtype: np.dtype, changes: Sequence[Change]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that adds changes to values in float32."""

    def add(values: np.ndarray) -> np.ndarray:
        changed = np.array(values, np.float32)
        with np.errstate(all="ignore"):  # what is not finite is refused by name when it is written
            for change in changes:
                changed += change.compute()
            return changed.astype(dtype)

    return add
