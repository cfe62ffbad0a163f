"""What will be written of a source component, tensor by tensor, checked against the network of its config.

Only headers are read here. Wrong names, shapes and types are found before any work is done.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from omniforcing_jax.io.weights import compare_shapes

from .finite import FLOATS, check_finite, is_weight_type
from .lazy_tensor import LazyTensor, cut_blocks
from .rules import Placement
from .source_component import SourceComponent

TensorLayout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class PlacedTensor:
    """One source tensor and its place: one contiguous run of bytes of a native tensor."""

    placement: Placement
    tensor: LazyTensor

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the values in native order; eight bits were checked where they were made.

        Raises:
            ValueError: A value is not finite; names tensor and file.
        """
        placement, tensor = self.placement, self.tensor
        values = tensor.blocks() if placement.axes is None else cut_blocks(placement.to_native(tensor.load()))
        return check_finite(values, placement.source, tensor.where) if tensor.dtype in FLOATS else values


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A component as it will be in the weights folder.

    Attributes:
        source: The component in its source.
        layout: Type and shape of each native tensor.
        placed: The source tensors that each native tensor is made of, in order.
        passed: Tensors that nothing here uses, under their source keys.
    """

    source: SourceComponent
    layout: TensorLayout
    placed: Mapping[str, tuple[PlacedTensor, ...]]
    passed: Mapping[str, LazyTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [one.tensor for each in self.placed.values() for one in each]
        return sum(tensor.nbytes for tensor in (*tensors, *self.passed.values()))

    def read(self, name: str) -> Iterator[np.ndarray]:
        """Read and check one native tensor, in consecutive blocks.

        Raises:
            ValueError: A value is not finite; names tensor and file.
        """
        for one in self.placed[name]:
            yield from one.blocks()

    def read_passed(self, key: str) -> Iterator[np.ndarray]:
        """Read one tensor that passes through; floating values are checked as well."""
        tensor = self.passed[key]
        return check_finite(tensor.blocks(), key, tensor.where) if tensor.dtype in FLOATS else tensor.blocks()


def plan_component(source: SourceComponent) -> Plan:
    """Check a source component and lay it out.

    Raises:
        ValueError: In one line, with file and key: a key is missing, unknown or mis-shaped for the network of the
            config, a tensor has a type that weights do not have, or layers of one tensor differ in type.
    """
    if source.component is None:
        return Plan(source=source, layout={}, placed={}, passed=source.tensors)
    naming = source.component.namings[source.naming]
    passed = {key: tensor for key, tensor in source.tensors.items() if naming.is_passed(key)}
    used = {key: tensor for key, tensor in source.tensors.items() if key not in passed}
    try:
        placements = source.component.expand(source.config, source.naming)
    except ValueError as error:
        raise ValueError(f"{source.where}: {source.name}: {error}") from None
    expected = {placement.source: placement.source_shape for placement in placements}
    compare_shapes({key: tensor.shape for key, tensor in used.items()}, expected, source.where)
    placed: dict[str, list[PlacedTensor]] = defaultdict(list)
    for placement in placements:
        placed[placement.native].append(PlacedTensor(placement=placement, tensor=used[placement.source]))
    return Plan(
        source=source,
        layout={name: _lay_out(each) for name, each in placed.items()},
        placed={name: tuple(each) for name, each in placed.items()},
        passed=passed,
    )


def _lay_out(placed: list[PlacedTensor]) -> tuple[np.dtype, tuple[int, ...]]:
    """Return type and shape of a native tensor."""
    first = placed[0]
    for one in placed:
        key, tensor = one.placement.source, one.tensor
        if not is_weight_type(tensor.dtype):
            expected = ", ".join(str(dtype) for dtype in FLOATS)
            raise ValueError(f"{tensor.where}: {key} is {tensor.dtype}, expected one of {expected}")
        if tensor.dtype != first.tensor.dtype:
            raise ValueError(f"{tensor.where}: {key} is {tensor.dtype}, its other layers are {first.tensor.dtype}")
    stack = () if first.placement.layer is None else (len(placed),)
    return first.tensor.dtype, stack + first.placement.native_shape
