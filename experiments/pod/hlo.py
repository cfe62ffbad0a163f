"""What a compiled program does in all, read from its optimised HLO text: FLOPs of matrix products, and collectives.

XLA's own cost analysis counts the body of a loop once; here it counts as often as the loop runs. The text may be of any
backend.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable

from experiments.hlo.text import Computation, Instruction, branches, parse, trips
from experiments.hlo.work import flops

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


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
        ValueError: If the text holds no entry computation, or a custom call whose work is not known.
    """
    computations, entry = parse(text)

    @functools.cache
    def of(name: str) -> Cost:
        there = computations[name]
        return _sum(_cost_of(instruction, there, name) for instruction in there.values())

    def _cost_of(one: Instruction, there: Computation, inside: str) -> Cost:
        if one.opcode == "while":
            turns = trips(one, there, computations)
            body = _times(of(one.attribute("body") or ""), unknown_trips if turns is None else turns)
            return dataclasses.replace(body, unknown_loops=body.unknown_loops + (turns is None))
        if one.opcode == "conditional":
            return max((of(name) for name in branches(one)), key=lambda cost: cost.flops)
        if one.opcode in ("fusion", "fusion-start", "call", "async-start"):
            return of(one.called)
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return _collective(kind, one, there, scattered="reduce-scatter" in inside)
        return Cost(flops=flops(one, [there[name].arrays[0] for name in one.operands if there[name].arrays]))

    return of(entry)


def _sum(costs: Iterable[Cost]) -> Cost:
    total, unknown = 0.0, 0
    collectives: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for cost in costs:
        total, unknown = total + cost.flops, unknown + cost.unknown_loops
        for kind, (times, size) in cost.collectives:
            collectives[kind][0] += times
            collectives[kind][1] += size
    return Cost(total, tuple(sorted((kind, (times, size)) for kind, (times, size) in collectives.items())), unknown)


def _times(cost: Cost, turns: float) -> Cost:
    often = tuple((kind, (times * turns, size * turns)) for kind, (times, size) in cost.collectives)
    return Cost(cost.flops * turns, often, cost.unknown_loops)


def _collective(kind: str, one: Instruction, there: Computation, *, scattered: bool) -> Cost:
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
