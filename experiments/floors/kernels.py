"""Every kernel of a compiled program for a GPU: its runs, its work, its traffic, and where its operands come from.

The text is scheduled HLO, in which each instruction that is not a mere view is a launch. Roles (weights, cache) follow
arrays from the program's arguments through loops, views and copies.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from experiments.floors import traffic
from experiments.floors.traffic import MOVES, Traffic
from experiments.hlo.text import Array, Computation, Instruction, branches, parse, trips
from experiments.hlo.work import flops

Role = str | None | tuple["Role", ...]
"""What an array is: `weights`, `cache` and the like, None for all else; of a tuple, that of each element."""

VIEWS = ("bitcast", "opt-barrier", "optimization-barrier", "add-dependency", "domain")
FREE = ("constant", "after-all", "partition-id", "replica-id")
PRODUCTS = ("dot", "convolution", "custom-call")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch of a program.

    Attributes:
        name: Of its instruction.
        path: Named scopes that it comes from.
        runs: How often it runs.
        flops: Of matrix products in one run.
        product: The instruction that multiplies, if any.
        factors: Arrays and roles of that instruction's operands.
        traffic: What one run moves.
        roles: Role of each operand.
        scalars: Numbers of the operands that are one element.
    """

    name: str
    path: str
    runs: float
    flops: float
    product: Instruction | None
    factors: tuple[tuple[Array, Role], ...]
    traffic: Traffic
    roles: tuple[Role, ...]
    scalars: frozenset[int]

    @property
    def read(self) -> float:
        """Bytes that one run reads."""
        return sum(self.traffic.read.values())

    @property
    def written(self) -> float:
        """Bytes that one run writes."""
        return sum(self.traffic.written)

    def copied(self, result: int | None = None) -> str | None:
        """Return the role of what a run copies: half of what it writes, or all that it reads, has that role.

        Args:
            result: Number of the result that is asked about; None for all together.
        """
        chosen = range(len(self.traffic.written)) if result is None else [result]
        written, sizes = sum(self.traffic.written[i] for i in chosen), dict[str, float]()
        for i in chosen:
            for number, size in self.traffic.moved[i].items():
                if isinstance(role := self.roles[number], str):
                    sizes[role] = sizes.get(role, 0.0) + size
        most = max(sizes, key=lambda role: sizes[role], default=None)
        return most if most is not None and 2 * sizes[most] >= written else self._only_role

    @property
    def _only_role(self) -> str | None:
        """The role of all operands but single numbers, where nothing is multiplied: weights made into other weights."""
        roles = {role for number, role in enumerate(self.roles) if number not in self.scalars}
        only = next(iter(roles)) if len(roles) == 1 and self.product is None else None
        return only if isinstance(only, str) else None


def read_kernels(text: str, roles: Mapping[str, str], unknown_trips: float = 1.0) -> list[Kernel]:
    """List the kernels of a program, those of a loop's body once with the number of their runs.

    Args:
        text: Of `jax.stages.Compiled.as_text()`, of a program for a GPU.
        roles: Role by the name of the argument of the compiled function.
        unknown_trips: How often a loop runs whose count depends on data.

    Raises:
        ValueError: As `hlo.text.parse` and `hlo.work.flops`.
    """
    computations, entry = parse(text)
    reader = _Reader(computations, unknown_trips)
    named = [one for one in computations[entry].values() if one.opcode == "parameter"]
    given = {int(one.literal): _role_of_argument(one, roles) for one in named}
    reader.walk(entry, [given[number] for number in sorted(given)], 1.0)
    return reader.found


def _role_of_argument(one: Instruction, roles: Mapping[str, str]) -> Role:
    longest = max((name for name in roles if one.path.startswith(name)), key=len, default=None)
    return None if longest is None else roles[longest]


class _Reader:
    """Walks through a program in the order of its schedule.

    Attributes:
        found: The kernels so far.
    """

    def __init__(self, computations: dict[str, Computation], unknown_trips: float):
        self._computations, self._unknown_trips = computations, unknown_trips
        self.found: list[Kernel] = []

    def walk(self, name: str, given: Sequence[Role], runs: float) -> Role:
        """Note the kernels of a computation; returns the role of what it returns."""
        there, roles = self._computations[name], dict[str, Role]()
        last: Role = None
        for one in there.values():
            roles[one.name] = self._visit(one, there, roles, given, runs)
            last = roles[one.name] if one.is_root else last
        return last

    def _visit(
        self, one: Instruction, there: Computation, roles: Mapping[str, Role], given: Sequence[Role], runs: float
    ) -> Role:
        operands = [roles[name] for name in one.operands]
        match one.opcode:
            case "parameter":
                return given[int(one.literal)]
            case "tuple":
                return tuple(operands)
            case "get-tuple-element":
                return element(operands[0], int(one.attribute("index") or 0))
            case "while":
                turns = trips(one, there, self._computations)
                often = runs * (self._unknown_trips if turns is None else turns)
                self.walk(one.attribute("body") or "", operands, often)
                return operands[0]
            case "conditional":
                return self._dearest(zip(branches(one), operands[1:], strict=True), runs)
            case "call" | "async-start":
                return self.walk(one.called, operands, runs)
            case opcode if opcode in VIEWS or opcode.endswith("-done"):
                return operands[0] if operands else None
            case opcode if opcode in FREE:
                return None
        kernel = _kernel(one, there, self._computations, operands, runs)
        self.found.append(kernel)
        made = [_role_of_result(kernel, number) for number in range(len(kernel.traffic.written))]
        return tuple(made) if len(made) > 1 else made[0]

    def _dearest(self, calls: Iterable[tuple[str, Role]], runs: float) -> Role:
        """Note the kernels of the branch that moves most."""
        tried = []
        for name, given in calls:
            reader = _Reader(self._computations, self._unknown_trips)
            role = reader.walk(name, [given], runs)
            tried.append((sum(k.runs * (k.flops + k.read + k.written) for k in reader.found), reader.found, role))
        _, found, role = max(tried, key=lambda one: one[0])
        self.found += found
        return role


def element(role: Role, index: int) -> Role:
    """Return the role of an element of a tuple."""
    return role[index] if isinstance(role, tuple) and index < len(role) else None


def _role_of_result(kernel: Kernel, number: int) -> Role:
    updated = kernel.traffic.updated[number]
    return kernel.copied(number) if updated is None else kernel.roles[updated]


def _kernel(
    one: Instruction, there: Computation, computations: dict[str, Computation], roles: Sequence[Role], runs: float
) -> Kernel:
    if one.opcode in ("fusion", "fusion-start"):
        inside, operands = computations[one.called], one.operands
    else:
        operands = tuple(dict.fromkeys(one.operands))
        inside, roles = traffic.alone(one, there), [dict(zip(one.operands, roles, strict=True))[x] for x in operands]
    products = [each for each in inside.values() if each.opcode in PRODUCTS and _flops(each, inside)]
    inner, product = _inner_roles(inside, roles), max(products, key=lambda each: _flops(each, inside), default=None)
    factors = () if product is None else tuple((inside[x].arrays[0], inner[x]) for x in product.operands)
    return Kernel(
        name=one.name,
        path=one.path if product is None else product.path,
        runs=runs,
        flops=sum(_flops(each, inside) for each in products),
        product=product,
        factors=factors,
        traffic=traffic.measure(inside),
        roles=tuple(roles),
        scalars=frozenset(n for n, name in enumerate(operands) if all(a.count == 1 for a in there[name].arrays)),
    )


def _flops(one: Instruction, inside: Computation) -> float:
    return flops(one, [inside[name].arrays[0] for name in one.operands if inside[name].arrays])


def _inner_roles(inside: Computation, given: Sequence[Role]) -> dict[str, Role]:
    """Follow the operands' roles through the views and copies inside a kernel."""
    roles = dict[str, Role]()
    for one in inside.values():
        if one.opcode == "parameter":
            roles[one.name] = given[int(one.literal)]
        elif one.opcode in MOVES:
            before = {roles[name] for name in (one.operands if one.opcode == "concatenate" else one.operands[:1])}
            roles[one.name] = before.pop() if len(before) == 1 else None
        else:
            roles[one.name] = None
    return roles
