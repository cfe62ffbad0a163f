"""What will be written of a part, tensor by tensor: checked against the network that its config declares.

Nothing is read here but headers; whatever is wrong with names, shapes and types is said before any work.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from converters.part import Part
from converters.piece import FLOATS, Piece, blocks, finite, is_float
from converters.rules import Placement
from omniforcing_jax.io.weights import compare_shapes

Layout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One tensor of theirs that becomes one run of bytes of ours."""

    placement: Placement
    piece: Piece


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A component as it will lie in our folder.

    Attributes:
        part: What it comes from.
        layout: Type and shape of each tensor of ours.
        runs: What each of them is made of, in order.
        passed: Tensors that nobody here uses, under their own keys.
    """

    part: Part
    layout: Layout
    runs: Mapping[str, tuple[Run, ...]]
    passed: Mapping[str, Piece]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        pieces = [run.piece for runs in self.runs.values() for run in runs]
        return sum(piece.nbytes for piece in (*pieces, *self.passed.values()))

    def read(self, name: str) -> Iterator[np.ndarray]:
        """Read and check one tensor of ours, in blocks that follow each other.

        Raises:
            ValueError: A value is not finite; names tensor and file.
        """
        for run in self.runs[name]:
            placement, piece = run.placement, run.piece
            values = piece.blocks() if placement.axes is None else blocks(placement.to_ours(piece.load()))
            yield from finite(values, placement.theirs, piece.where)

    def read_passed(self, key: str) -> Iterator[np.ndarray]:
        """Read one tensor that goes through; its values are checked as well, where they can be infinite."""
        piece = self.passed[key]
        return finite(piece.blocks(), key, piece.where) if piece.dtype in FLOATS else piece.blocks()


def plan_part(part: Part) -> Plan:
    """Check a part and lay it out.

    Raises:
        ValueError: In one line, with file and key: a key is missing, unknown or mis-shaped for the network that the
            config declares, or a weight is of a type that weights do not have, or of another than its other layers.
    """
    if part.component is None:
        return Plan(part=part, layout={}, runs={}, passed=part.tensors)
    naming = part.component.namings[part.naming]
    passed = {key: piece for key, piece in part.tensors.items() if naming.is_passed(key)}
    used = {key: piece for key, piece in part.tensors.items() if key not in passed}
    try:
        placements = part.component.place(part.config, part.naming)
    except ValueError as error:
        raise ValueError(f"{part.where}: {part.name}: {error}") from None
    compare_shapes(
        {key: piece.shape for key, piece in used.items()}, {p.theirs: p.shape for p in placements}, part.where
    )
    runs: dict[str, list[Run]] = defaultdict(list)
    for placement in placements:
        runs[placement.ours].append(Run(placement=placement, piece=used[placement.theirs]))
    return Plan(
        part=part,
        layout={name: _lay_out(each) for name, each in runs.items()},
        runs={name: tuple(each) for name, each in runs.items()},
        passed=passed,
    )


def _lay_out(runs: list[Run]) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of a tensor of ours."""
    first = runs[0]
    for run in runs:
        key, piece = run.placement.theirs, run.piece
        if not is_float(piece.dtype):
            wanted = ", ".join(str(dtype) for dtype in FLOATS)
            raise ValueError(f"{piece.where}: {key} is {piece.dtype}, expected one of {wanted}")
        if piece.dtype != first.piece.dtype:
            raise ValueError(f"{piece.where}: {key} is {piece.dtype}, its other layers are {first.piece.dtype}")
    stack = () if first.placement.layer is None else (len(runs),)
    return first.piece.dtype, stack + first.placement.own_shape
