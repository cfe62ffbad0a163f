"""What a compiled program does in all, read from its optimised HLO text: FLOPs of matrix products, and collectives.

XLA's own cost analysis counts the body of a loop once; here it counts as often as the loop runs. The rest of a program
(norms, softmax, rotations) is a percent of a transformer's work and is not counted. The text may be of any backend. A
TPU's matrix products are convolutions, and its Pallas kernels are custom calls that are known by name.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable

import numpy as np

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # others say it: f32, s8, u4, f8e4m3fn
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# FLOPs of jax's splash kernels per query, key, head and channel, two for each of the products that they make.
SPLASH_FLOPS = {"fwd": 4, "dq": 6, "dkv": 8}


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and sizes of one array."""

    kind: str
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        bits = BITS.get(self.kind) or int(re.sub(r"^[a-z]+(\d+).*$", r"\1", self.kind))
        return self.count * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]  # of its result; several for a tuple
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes, as text
    literal: str  # what stands between the parentheses
    is_root: bool = False  # what its computation returns

    def attribute(self, name: str) -> str | None:
        """Return the name of a computation, or another plain word, behind `name=`."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program, or a part of it, does on one device.

    Attributes:
        flops: Of matrix products, two per multiply-add.
        collectives: (kind, devices in a group) -> (times, bytes that a device receives in all).
        unknown_loops: Loops whose number of turns the text does not say.
    """

    flops: float = 0.0
    collectives: tuple[tuple[tuple[str, int], tuple[float, float]], ...] = ()
    unknown_loops: int = 0

    @property
    def received_bytes(self) -> float:
        """Bytes that a device receives in all."""
        return sum(size for _, (_, size) in self.collectives)


def read_cost(text: str, unknown_trips: float = 1.0) -> Cost:
    """Read what a program does on one device.

    Args:
        text: Of `jax.stages.Compiled.as_text()`.
        unknown_trips: How often a loop runs whose count depends on data, such as rollouts up to a drawn step.

    Raises:
        ValueError: If the text holds no entry computation.
    """
    computations, entry = parse(text)

    @functools.cache
    def of(name: str) -> Cost:
        there = computations[name]
        return _sum(_cost_of(instruction, there, name) for instruction in there.values())

    def _cost_of(one: Instruction, there: dict[str, Instruction], inside: str) -> Cost:
        if one.opcode == "while":
            trips = _trips(one, there, computations)
            body = _times(of(one.attribute("body") or ""), unknown_trips if trips is None else trips)
            return dataclasses.replace(body, unknown_loops=body.unknown_loops + (trips is None))
        if one.opcode == "conditional":
            return max((of(name) for name in _branches(one)), key=lambda cost: cost.flops)
        if one.opcode in ("fusion", "call", "async-start"):
            return of(one.attribute("calls") or one.attribute("to_apply") or "")
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return _collective(kind, one, there, scattered="reduce-scatter" in inside)
        return Cost(flops=_flops(one, there))

    return of(entry)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Split a module into computations, each a table of instructions by name, and the entry's name.

    Raises:
        ValueError: If there is no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)):
            current[found[2]] = _instruction(found[2], found[3], is_root=found[1] is not None)
    if not entry:
        raise ValueError("text of a program: holds no entry computation")
    return computations, entry


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    shape, text = _balanced(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, text = text.lstrip().partition("(")
    inner, rest = _balanced("(" + text)
    arrays = tuple(
        Array(kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", shape)
    )
    return Instruction(name, arrays, opcode, tuple(re.findall(r"%([\w.\-]+)", inner)), rest, inner[1:-1], is_root)


def _balanced(text: str) -> tuple[str, str]:
    """Split off the parenthesis that a text begins with."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return text[: place.end()], text[place.end() :]
    return text, ""


def _sum(costs: Iterable[Cost]) -> Cost:
    flops, unknown = 0.0, 0
    collectives: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for cost in costs:
        flops, unknown = flops + cost.flops, unknown + cost.unknown_loops
        for kind, (times, size) in cost.collectives:
            collectives[kind][0] += times
            collectives[kind][1] += size
    return Cost(flops, tuple(sorted((kind, (times, size)) for kind, (times, size) in collectives.items())), unknown)


def _times(cost: Cost, trips: float) -> Cost:
    often = tuple((kind, (times * trips, size * trips)) for kind, (times, size) in cost.collectives)
    return Cost(cost.flops * trips, often, cost.unknown_loops)


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1])
    return [name for side in ("true", "false") if (name := one.attribute(f"{side}_computation"))]


def _trips(
    loop: Instruction, there: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]
) -> int | None:
    """Count the turns of a loop: as XLA noted them, or by `counter < constant` and the counter's steps."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = computations[loop.attribute("condition") or ""]
    compared = [one for one in condition.values() if one.opcode == "compare" and "direction=LT" in one.rest]
    if len(compared) != 1:
        return None
    counter, limit = (condition[name] for name in compared[0].operands)
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return None
    index = int(counter.attribute("index") or 0)
    begin = _element(there.get(loop.operands[0]), index, there)
    first = int(begin.literal) if begin is not None and begin.opcode == "constant" else 0
    turns = (int(limit.literal) - first) / _step(computations[loop.attribute("body") or ""], index)
    return max(0, math.ceil(turns))


def _step(body: dict[str, Instruction], index: int) -> int:
    """Return what a loop's body adds to its counter: one, or two where XLA unrolled it to hold two buffers at once."""
    root = next((one for one in body.values() if one.is_root), None)
    moved = _element(root, index, body)
    if moved is None or moved.opcode != "add":
        return 1
    added = [there for name in moved.operands if (there := body.get(name)) is not None and there.opcode == "constant"]
    return int(added[0].literal) if len(added) == 1 else 1


def _element(made: Instruction | None, index: int, there: dict[str, Instruction]) -> Instruction | None:
    """Return the instruction at an index of a tuple, through copies."""
    found = there.get(made.operands[index]) if made is not None and made.opcode == "tuple" else None
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = there.get(found.operands[0])
    return found


def _collective(kind: str, one: Instruction, there: dict[str, Instruction], *, scattered: bool) -> Cost:
    group = _group_size(one)
    given = sum(array.bytes for name in one.operands for array in there[name].arrays)
    if kind == "all-gather":
        received = given * (group - 1)
    elif kind == "collective-permute":
        received = given
    else:
        received = given * (group - 1) / group
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    elif kind == "all-reduce":
        received *= 2
    return Cost(collectives=(((kind, group), (1.0, received)),)) if group > 1 else Cost()


def _group_size(one: Instruction) -> int:
    """Return the devices in a group: of {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}; of a permute, 2.

    Between a mesh and its axes may stand the order of its devices: mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}.
    """
    if "source_target_pairs" in one.rest:
        return 2
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", one.rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", one.rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", one.rest)
    return len(found[1].split(",")) if found else 1


def _flops(one: Instruction, there: dict[str, Instruction]) -> float:
    if one.opcode == "dot":
        left = there[one.operands[0]].arrays[0]
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        axes = [int(axis) for axis in (summed[1] if summed else "").split(",") if axis]
        return 2.0 * one.arrays[0].count * math.prod(left.sizes[axis] for axis in axes)
    if one.opcode == "convolution":
        left, right = (there[name].arrays[0].sizes for name in one.operands[:2])
        return _convolution_flops(left, right, one.arrays[0].sizes, one.rest)
    if one.opcode == "custom-call":
        return _kernel_flops(one, [there[name].arrays[0] for name in one.operands if there[name].arrays])
    return 0.0


def _kernel_flops(one: Instruction, operands: list[Array]) -> float:
    """Know a kernel by name: jax's splash, and the fused softmax and second product that TPU's compiler makes."""
    wide = [array for array in operands if len(array.sizes) >= 3 and array.kind in ("bf16", "f16", "f32")]
    if splash := re.search(r"splash_m[hq]a_(fwd|dq|dkv)", one.name + one.rest):
        queries, keys = wide[:2]
        return float(SPLASH_FLOPS[splash[1]] * queries.count * keys.sizes[-2])
    if "online-softmax" in one.name:
        return 2.0 * one.arrays[0].count * operands[0].sizes[-1]
    return 0.0


def _convolution_flops(left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], rest: str) -> float:
    """Count the multiply-adds that are not with padding, times two."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {rest[:80]}")
    of_left, of_right, of_out = (dict(zip(label, range(99), strict=False)) for label in labels.groups())
    groups = int(found[1]) if (found := re.search(r"feature_group_count=(\d+)", rest)) else 1
    batches = int(found[1]) if (found := re.search(r"batch_group_count=(\d+)", rest)) else 1
    window = (re.search(r"window=\{([^}]*)\}", rest) or ["", ""])[1]
    axes = sorted(label for label in of_out if label.isdigit())
    pairs = 1.0
    for axis in axes:
        number = int(axis)
        pairs *= _pairs(
            left[of_left[axis]],
            right[of_right[axis]],
            out[of_out[axis]],
            stride=_window(window, "stride", number, 1),
            low=_window(window, "pad", number, 0),
            left_dilate=_window(window, "lhs_dilate", number, 1),
            right_dilate=_window(window, "rhs_dilate", number, 1),
        )
    features = left[of_left["f"]] / groups * right[of_right["o"]]
    return 2.0 * pairs * features * left[of_left["b"]] / batches


def _window(window: str, name: str, axis: int, default: int) -> int:
    """Read `stride=1x2` and the like; of `pad=0_1x2_2` the lower padding."""
    found = re.search(rf"\b{name}=([\d_x\-]+)", window)
    return int(found[1].split("x")[axis].partition("_")[0]) if found else default


@functools.cache
def _pairs(size: int, kernel: int, out: int, *, stride: int, low: int, left_dilate: int, right_dilate: int) -> int:
    """Count the pairs of an output and a kernel position that meet an element and not padding."""
    place = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * right_dilate
    inside = (place >= 0) & (place <= (size - 1) * left_dilate) & (place % left_dilate == 0)
    return int(inside.sum())
