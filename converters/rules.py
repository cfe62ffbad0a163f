"""Rule tables: names of ours beside names elsewhere, and what follows from such a table.

A rule pairs one tensor of ours with one of theirs; `{i}` in their name is the layer, and all
layers of a rule lie stacked on a leading axis of ours. Without `axes` nothing is transposed: one
tensor of theirs is one run of bytes of ours. The tables are total: a key that is unknown, missing,
given twice or mis-shaped is an error that names it. Pure NumPy; what a component exports is
in component.py, and a table per component lies beside this file.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omniforcing_jax.io.weights import compare_shapes

LAYER = "{i}"
Shape = tuple[int, ...]
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and its name elsewhere; `{i}` there means one tensor per layer.

    Attributes:
        ours: Path of our leaf.
        theirs: Their key.
        axes: Ours (one layer of it) is theirs.transpose(axes), as a convolution's kernel needs; None where the bytes
            are the same.
    """

    ours: str
    theirs: str
    axes: Axes | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One tensor of theirs: its shape, and where in which tensor of ours it lies (see `Rule` for `axes`)."""

    theirs: str
    ours: str
    layer: int | None
    shape: Shape
    axes: Axes | None = None

    @property
    def own_shape(self) -> Shape:
        """Shape of its place in ours, without the layer axis."""
        return self.shape if self.axes is None else tuple(self.shape[axis] for axis in self.axes)

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """Turn a tensor of theirs as ours lies; a view."""
        return value if self.axes is None else value.transpose(self.axes)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """Turn one layer of ours as theirs lies; a view."""
        return value if self.axes is None else value.transpose(np.argsort(self.axes).tolist())


def check_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules as a table in which no name occurs twice on either side.

    Raises:
        ValueError: Names what occurs twice.
    """
    table = tuple(rules)
    for side in ("ours", "theirs"):
        name, count = Counter(getattr(rule, side) for rule in table).most_common(1)[0]
        if count > 1:
            raise ValueError(f"two rules for '{name}'")
    return table


def place(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> tuple[Placement, ...]:
    """Spell the table out for a network: every tensor of theirs and its place in ours.

    Args:
        rules: The table; rules for parts that this network lacks are left out.
        shapes: Shapes of all tensors of ours; layers on the leading axis of stacked ones.

    Raises:
        ValueError: No rule covers a tensor of ours, or its axes are not those of the tensor.
    """
    by_ours = {rule.ours: rule for rule in rules}
    placements = []
    for ours, shape in shapes.items():
        if ours not in by_ours:
            raise ValueError(f"no rule for '{ours}'")
        rule = by_ours[ours]
        stacked = LAYER in rule.theirs
        own = shape[1:] if stacked else shape
        if rule.axes is not None and sorted(rule.axes) != list(range(len(own))):
            raise ValueError(f"axes={rule.axes}: must order the {len(own)} axes of '{ours}'")
        theirs = own if rule.axes is None else tuple(own[rule.axes.index(axis)] for axis in range(len(own)))
        placements += [
            Placement(
                theirs=rule.theirs if i is None else rule.theirs.replace(LAYER, str(i)),
                ours=ours,
                layer=i,
                shape=theirs,
                axes=rule.axes,
            )
            for i in (range(shape[0]) if stacked else [None])
        ]
    return tuple(placements)


def gather(tensors: Mapping[str, np.ndarray], placements: Sequence[Placement], where: str) -> dict[str, np.ndarray]:
    """Bring tensors of theirs into ours: check all names and shapes, then copy.

    Args:
        tensors: All of theirs, and nothing else.
        placements: The spelled-out table.
        where: The source, for messages.

    Raises:
        ValueError: Names the keys that are missing, unknown or mis-shaped, or the first whose
            dtype differs from the layers that it is stacked with.
    """
    compare_shapes(_shapes(tensors), {p.theirs: p.shape for p in placements}, where)
    depth = Counter(p.ours for p in placements)
    result: dict[str, np.ndarray] = {}
    for p in placements:
        source = tensors[p.theirs]
        if p.ours not in result:
            stack = () if p.layer is None else (depth[p.ours],)
            result[p.ours] = np.empty(stack + p.own_shape, source.dtype)
        if source.dtype != result[p.ours].dtype:
            raise ValueError(f"{where}: {p.theirs} is {source.dtype}, its other layers are {result[p.ours].dtype}")
        result[p.ours][... if p.layer is None else p.layer] = p.to_ours(source)
    return result


def scatter(tensors: Mapping[str, np.ndarray], placements: Sequence[Placement], where: str) -> dict[str, np.ndarray]:
    """Bring tensors of ours into theirs, as views; the inverse of `gather`.

    Raises:
        ValueError: Names the tensors of ours that are missing, unknown or mis-shaped.
    """
    depth = Counter(p.ours for p in placements)
    wanted = {p.ours: p.own_shape if p.layer is None else (depth[p.ours], *p.own_shape) for p in placements}
    compare_shapes(_shapes(tensors), wanted, where)
    return {
        p.theirs: p.to_theirs(tensors[p.ours] if p.layer is None else tensors[p.ours][p.layer, ...]) for p in placements
    }


def _shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
