"""The text of a compiled program as tables of instructions, and how often its loops turn.

The text may be of any backend. What an instruction costs is said elsewhere: its FLOPs in work.py.
"""

import dataclasses
import math
import re

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # others say it: f32, s8, u4, f8e4m3fn


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
    def item_bytes(self) -> float:
        """Bytes of an element."""
        return (BITS.get(self.kind) or int(re.sub(r"^[a-z]+(\d+).*$", r"\1", self.kind))) / 8

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        return self.count * self.item_bytes


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

    @property
    def called(self) -> str:
        """Computation that a fusion or a call runs."""
        return self.attribute("calls") or self.attribute("to_apply") or ""

    @property
    def target(self) -> str:
        """Name of the library's function that a custom call runs."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def path(self) -> str:
        """Named scopes that it comes from; of a parameter, the argument's name."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Split a module into computations, each a table of instructions by name, and the entry's name.

    Raises:
        ValueError: If there is no entry computation.
    """
    computations: dict[str, Computation] = {}
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


def root_of(computation: Computation) -> Instruction:
    """Return what a computation returns."""
    return next(one for one in reversed(computation.values()) if one.is_root)


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


def branches(one: Instruction) -> list[str]:
    """Return the computations of which a conditional runs one."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1])
    return [name for side in ("true", "false") if (name := one.attribute(f"{side}_computation"))]


def trips(loop: Instruction, there: Computation, computations: dict[str, Computation]) -> int | None:
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


def _step(body: Computation, index: int) -> int:
    """Return what a loop's body adds to its counter: one, or two where XLA unrolled it to hold two buffers at once."""
    root = next((one for one in body.values() if one.is_root), None)
    moved = _element(root, index, body)
    if moved is None or moved.opcode != "add":
        return 1
    added = [there for name in moved.operands if (there := body.get(name)) is not None and there.opcode == "constant"]
    return int(added[0].literal) if len(added) == 1 else 1


def _element(made: Instruction | None, index: int, there: Computation) -> Instruction | None:
    """Return the instruction at an index of a tuple, through copies."""
    found = there.get(made.operands[index]) if made is not None and made.opcode == "tuple" else None
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = there.get(found.operands[0])
    return found
