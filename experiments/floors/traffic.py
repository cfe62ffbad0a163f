"""Bytes that one kernel reads and writes, from the text of the computation that it runs.

A kernel reads of each operand what its results depend on, once. A slice reads the slice alone, and an update in place
writes the update alone. Reads that a cache answers twice are not counted, so the bytes are a lower bound.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from experiments.hlo.text import Array, Computation, Instruction, root_of

# What only moves elements; a change of type counts as such, too.
VIEWS = ("bitcast", "bitcast-convert", "get-tuple-element", "optimization-barrier", "reshape")
COPIES = ("concatenate", "convert", "copy", "copy-start", "pad", "reverse", "transpose")
SLICES = ("slice", "dynamic-slice", "gather")
MOVES = frozenset((*VIEWS, *COPIES, *SLICES))
WHOLE = ("reduce", "reduce-window", "dot", "convolution", "sort", "custom-call", "scatter", "fusion", "call", "map")
WORKSPACE = ("s8", "u8")  # scratch memory that cuBLAS and cuDNN return beside their results


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one run of a kernel moves.

    Attributes:
        read: Bytes by operand number.
        written: Bytes of each result.
        moved: For each result, by operand number: the written bytes that are that operand's elements, unchanged but
            for their type.
        updated: For each result, the number of the operand that it is an update of, in place.
    """

    read: Mapping[int, float]
    written: tuple[float, ...]
    moved: tuple[Mapping[int, float], ...]
    updated: tuple[int | None, ...]


def measure(inside: Computation) -> Traffic:
    """Measure a kernel that runs a computation, whose parameters are the kernel's operands."""
    root = root_of(inside)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    numbers = {one.name: int(one.literal) for one in inside.values() if one.opcode == "parameter"}
    updates = [_updated(result, inside) for result in results]
    needed = _needed(inside, results, {name for _, chain in updates for name in chain})
    read = {numbers[name]: needed[name] * inside[name].arrays[0].item_bytes for name in numbers if inside[name].arrays}
    return Traffic(
        read=read,
        written=tuple(_written(result, inside, chain) for result, (_, chain) in zip(results, updates, strict=True)),
        moved=tuple(_moved(result, inside, numbers) for result in results),
        updated=tuple(None if base is None else numbers[base] for base, _ in updates),
    )


def alone(one: Instruction, there: Computation) -> Computation:
    """Return an instruction that is a kernel by itself as a computation."""
    names = list(dict.fromkeys(one.operands))
    parameters = {
        name: dataclasses.replace(there[name], opcode="parameter", operands=(), literal=str(number), is_root=False)
        for number, name in enumerate(names)
    }
    return {**parameters, one.name: dataclasses.replace(one, is_root=True)}


def _updated(result: Instruction, inside: Computation) -> tuple[str | None, tuple[str, ...]]:
    """Return the parameter that a result updates in place, if any, and the updates on the way to it."""
    chain, one = [], result
    while one.opcode in ("bitcast", "dynamic-update-slice", "scatter"):
        if one.opcode != "bitcast":
            chain.append(one.name)
        one = inside[one.operands[0]]
    return (one.name, tuple(chain)) if chain and one.opcode == "parameter" else (None, ())


def _needed(inside: Computation, results: list[Instruction], in_place: set[str]) -> dict[str, float]:
    """Return how many elements of each instruction the results depend on."""
    needed: dict[str, float] = collections.defaultdict(float)
    for result in results:
        needed[result.name] = float(results_of(result)[0].count)
    for one in reversed(inside.values()):
        if one.opcode in ("parameter", "tuple") or not one.arrays:
            continue
        count = needed[one.name] = min(needed[one.name], float(one.arrays[0].count))
        for place, name in enumerate(one.operands):
            if inside[name].arrays:
                needed[name] += _asked(one, place, count, inside, is_in_place=one.name in in_place)
    return {name: min(count, float(inside[name].arrays[0].count)) for name, count in needed.items() if name in inside}


def _asked(one: Instruction, place: int, count: float, inside: Computation, *, is_in_place: bool) -> float:
    """Return how many elements of an operand are read for `count` elements of an instruction."""
    whole, made = float(inside[one.operands[place]].arrays[0].count), one.arrays[0].count
    if one.opcode in ("dynamic-update-slice", "scatter") and place == 0:
        return 0.0 if is_in_place or not count else max(whole - _update(one, inside).count, 0.0)
    if not count or one.opcode in WHOLE:
        return whole if count else 0.0
    if one.opcode in SLICES:
        return count if place == 0 else whole
    if one.opcode in ("concatenate", "bitcast-convert"):
        return whole * count / made
    return min(count, whole)


def _update(one: Instruction, inside: Computation) -> Array:
    """Return what an update writes."""
    return inside[one.operands[1 if one.opcode == "dynamic-update-slice" else 2]].arrays[0]


def results_of(one: Instruction) -> tuple[Array, ...]:
    """Return the arrays of a result, without scratch memory."""
    if one.opcode == "custom-call" and len(one.arrays) > 1 and one.arrays[-1].kind in WORKSPACE:
        return one.arrays[:-1]
    return one.arrays


def _written(result: Instruction, inside: Computation, chain: tuple[str, ...]) -> float:
    if chain:
        return sum(_update(inside[name], inside).bytes for name in chain)
    return sum(array.bytes for array in results_of(result))


def _moved(result: Instruction, inside: Computation, numbers: Mapping[str, int]) -> dict[int, float]:
    found: dict[int, float] = collections.defaultdict(float)
    for name, count in _sources(result, inside, float(result.arrays[0].count)):
        if name in numbers:
            found[numbers[name]] += count * result.arrays[0].item_bytes
    return dict(found)


def _sources(one: Instruction, inside: Computation, count: float) -> Iterator[tuple[str, float]]:
    """Walk back through what only moves elements; yield where they come from, and how many."""
    if one.opcode == "concatenate":
        for name in one.operands:
            part = float(inside[name].arrays[0].count)
            yield from _sources(inside[name], inside, part * count / one.arrays[0].count)
    elif one.opcode == "dynamic-update-slice":
        yield from _sources(inside[one.operands[1]], inside, float(_update(one, inside).count))
    elif one.opcode in MOVES:
        before = inside[one.operands[0]]
        yield from _sources(before, inside, min(count, float(before.arrays[0].count)))
    else:
        yield one.name, count
