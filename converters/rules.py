"""Rule tables: the names of native tensors beside their names in another format.

A rule pairs one native tensor with one source key. `{i}` in the key is the number of a layer: the native tensor holds
all layers, stacked on its leading axis. Without `axes` nothing is transposed, so that a source tensor is one contiguous
run of bytes in the native file. Tables are total: a key that is unknown, missing, given twice or mis-shaped is an error
that names it. What a component exports is in component.py; formats/ has a table for each component.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LAYER = "{i}"
Shape = tuple[int, ...]
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """One native tensor and its key in another format.

    Attributes:
        native: Path of the native leaf.
        source: The key; `{i}` in it means one source tensor per layer.
        axes: A native tensor (one layer of it) is the source tensor transposed by these axes, as a convolution's kernel
            needs it. None where the bytes are the same.
        numbers: Numbers of the layers that the native tensor holds, in order; None counts from 0.
    """

    native: str
    source: str
    axes: Axes | None = None
    numbers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One source tensor, and its place in a native tensor (see `Rule` for `axes`).

    Attributes:
        source: The key, in full.
        native: Path of the native leaf.
        layer: Row of the leading axis; None where the native tensor is not stacked.
        source_shape: Shape of the source tensor.
        axes: As in the rule.
    """

    source: str
    native: str
    layer: int | None
    source_shape: Shape
    axes: Axes | None = None

    @property
    def native_shape(self) -> Shape:
        """Shape of the place in the native tensor, without the layer axis."""
        return self.source_shape if self.axes is None else tuple(self.source_shape[axis] for axis in self.axes)

    def to_native(self, value: np.ndarray) -> np.ndarray:
        """Transpose a source tensor to the native order; a view."""
        return value if self.axes is None else value.transpose(self.axes)

    def to_source(self, value: np.ndarray) -> np.ndarray:
        """Transpose one layer of a native tensor to the source order; a view."""
        return value if self.axes is None else value.transpose(np.argsort(self.axes).tolist())


def check_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules as a table in which no name occurs twice on either side, for the same layers.

    Raises:
        ValueError: A name occurs twice; names it.
    """
    table = tuple(rules)
    _refuse_two((rule.native, None) for rule in table)
    _refuse_two((rule.source, rule.numbers) for rule in table)
    return table


def _refuse_two(names: Iterable[tuple[str, Axes | None]]) -> None:
    for (name, _), count in Counter(names).most_common(1):
        if count > 1:
            raise ValueError(f"two rules for '{name}'")


def expand_rules(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> tuple[Placement, ...]:
    """List every source tensor of a network, and its place in the native tensors.

    Args:
        rules: The table. Rules for parts that the network lacks are left out.
        shapes: Shapes of all native tensors; stacked ones have layers on the leading axis.

    Raises:
        ValueError: A native tensor has no rule, a rule's axes or numbers do not fit it, or a source key has two places.
    """
    by_native = {rule.native: rule for rule in rules}
    placements: list[Placement] = []
    for native, shape in shapes.items():
        if native not in by_native:
            raise ValueError(f"no rule for '{native}'")
        placements += _expand(by_native[native], shape)
    _refuse_two((placement.source, None) for placement in placements)
    return tuple(placements)


def _expand(rule: Rule, shape: Shape) -> list[Placement]:
    """List the placements of one rule: one per layer, or the only one."""
    stacked = LAYER in rule.source
    one = shape[1:] if stacked else shape
    if rule.axes is not None and sorted(rule.axes) != list(range(len(one))):
        raise ValueError(f"axes={rule.axes}: must order the {len(one)} axes of '{rule.native}'")
    source_shape = one if rule.axes is None else tuple(one[rule.axes.index(axis)] for axis in range(len(one)))
    return [
        Placement(source=source, native=rule.native, layer=layer, source_shape=source_shape, axes=rule.axes)
        for layer, source in (_number(rule, shape[0]) if stacked else [(None, rule.source)])
    ]


def _number(rule: Rule, layers: int) -> list[tuple[int, str]]:
    """List the rows of a stacked tensor, and their source keys."""
    numbers = range(layers) if rule.numbers is None else rule.numbers
    if len(numbers) != layers:
        raise ValueError(f"'{rule.native}' has {layers} layers, its rule {len(numbers)} numbers")
    return [(layer, rule.source.replace(LAYER, str(number))) for layer, number in enumerate(numbers)]
