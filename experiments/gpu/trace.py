"""A profile in twenty rows: where the device's time goes, by named scope, and how much of the wall time it is.

jax.profiler writes an XSpace, which jax.profiler.ProfileData reads. On a GPU each stream is a line of kernels. A CPU
has threads instead, whose events of XLA's operations lie inside each other. An event names an instruction of a compiled
program. The program's text, from the executables that are alive, has the path of named scopes beside it.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

TOP = 20
DEPTH = 4  # scopes of a path that are told apart, such as denoise_step/layers/video_self/dot_product_attention
UNNAMED = "(no scope)"
STRUCTURE = re.compile(
    r"\w+\(.*\)|while|body|cond|closed_call|eval_jaxpr|checkpoint|rematted_computation|branch_\d+_fun|main"
)
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = ")
CALLS, PATH = re.compile(r"calls=%?([\w.-]+)"), re.compile(r'op_name="([^"]*)"')
NUMBER = re.compile(r"([._]\d+)+$")
GRAPH = "command_buffer"
MICROSECOND, MILLISECOND = 1e3, 1e6  # in nanoseconds

Paths = Mapping[str, Sequence[Mapping[str, str]]]
"""By module the paths of its instructions; programs of other shapes have the same module name."""


class Op(NamedTuple):
    """One event: an operation on one line (a stream of the device, or a thread).

    Attributes:
        line: where it ran.
        module: the program's, "" for a copy between host and device.
        name: of the instruction, or of the copy.
        path: of named scopes, where the event itself has it; in a CUDA graph the kernel's name.
        start, stop: in nanoseconds.
    """

    line: str
    module: str
    name: str
    path: str
    start: float
    stop: float


@dataclasses.dataclass
class Scope:
    """What ran under one named scope.

    Attributes:
        kernels: how many operations.
        instructions: milliseconds by the instruction's name, without its number.
    """

    kernels: int = 0
    instructions: defaultdict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @property
    def ms(self) -> float:
        """Milliseconds in all."""
        return sum(self.instructions.values())


def read_trace(folder: Path) -> list[Op]:
    """Read the device's operations out of a profile.

    Raises:
        ValueError: if the folder holds none.
    """
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise ValueError(f"{folder}: holds no profile (*.xplane.pb)")
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    ops = [op for plane in on_device or planes for line in plane.lines for op in _ops_of(line, bool(on_device))]
    if not ops:
        raise ValueError(f"{files[-1]}: has no operation of a device")
    return ops


def _ops_of(line: Any, is_device: bool) -> Iterable[Op]:
    """Read a line; of a device's plane only streams, not the lines that are derived from them."""
    if is_device and not line.name.startswith("Stream"):
        return
    for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats or is_device:
            module, name = str(stats.get("hlo_module", "")), str(stats.get("hlo_op") or event.name)
            path = str(stats.get("tf_op") or stats.get("name") or "")
            if name.startswith(GRAPH):  # of a CUDA graph the instruction is the whole graph
                name, path = event.name, f"{event.name}/"
            yield Op(line.name, module, name, path, event.start_ns, event.start_ns + event.duration_ns)


def live_paths() -> Paths:
    """Read the path of every instruction of all compiled programs that are alive."""
    found: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for executable in jax.devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            found[module.name].append(paths_of(module.to_string()))
    return found


def paths_of(program: str) -> dict[str, str]:
    """Read the path of each instruction out of a program's text; a fusion without one has that of its last part."""
    paths: dict[str, str] = {}
    last_of: dict[str, str] = {}  # by computation; those that are called come before their callers
    computation = ""
    for line in program.splitlines():
        if head := COMPUTATION.match(line):
            computation = head[1]
        elif (name := INSTRUCTION.match(line)) and (path := _path_in(line, last_of)):
            paths[name[1]] = paths[name[1].replace(".", "_")] = last_of[computation] = path  # kernels have no points
    return paths


def _path_in(line: str, last_of: Mapping[str, str]) -> str | None:
    if path := PATH.search(line):
        return path[1]
    called = CALLS.search(line)
    return None if called is None else last_of.get(called[1])


def summarise(ops: Sequence[Op], paths: Paths, wall_s: float) -> dict[str, Any]:
    """Sum up by named scope.

    Args:
        ops: what ran, from `read_trace`.
        paths: from `live_paths`.
        wall_s: seconds that the profiled work took.

    Returns:
        `wall_ms`; `kernel_ms`, the sum over operations; `busy_ms`, in which at least one ran; `busy_share` of the wall
        time; `host_to_device`, wall over busy time; `kernels`; `under_10us_ms`, the sum over operations that take less
        than 10 microseconds; and `top`, rows of program, scope, ms, share of kernel_ms, kernels, and the instruction
        that takes most.
    """
    own, found = self_times(ops), by_scope(ops, paths)
    total_ms, busy_ms = sum(scope.ms for scope in found.values()), busy_time(ops) / MILLISECOND
    heaviest = sorted(found.items(), key=lambda item: item[1].ms, reverse=True)[:TOP]
    top = [
        {
            "program": program,
            "scope": name,
            "ms": round(scope.ms, 3),
            "share": round(scope.ms / total_ms, 4),
            "kernels": scope.kernels,
            "most": max(scope.instructions, key=lambda each: scope.instructions[each]),
        }
        for (program, name), scope in heaviest
    ]
    return {
        "wall_ms": round(1000 * wall_s, 2),
        "kernel_ms": round(total_ms, 2),
        "busy_ms": round(busy_ms, 2),
        "busy_share": round(busy_ms / (1000 * wall_s), 4),
        "host_to_device": round(1000 * wall_s / busy_ms, 4),
        "kernels": len(ops),
        "under_10us_ms": round(sum(spent for _, spent in own if spent < 10 * MICROSECOND) / MILLISECOND, 2),
        "top": top,
    }


def by_scope(ops: Sequence[Op], paths: Paths) -> dict[tuple[str, str], Scope]:
    """Sum up operations by program and named scope."""
    chosen = {module: _most_like(module, ops, paths) for module in {op.module for op in ops}}
    found: defaultdict[tuple[str, str], Scope] = defaultdict(Scope)
    for op, nanoseconds in self_times(ops):
        path = chosen[op.module].get(op.name, op.path)
        scope = found[op.module.removeprefix("jit_") or "copies", scope_of(path)]
        scope.kernels += 1
        scope.instructions[NUMBER.sub("", op.name)] += nanoseconds / MILLISECOND
    return dict(found)


def scope_of(path: str) -> str:
    """Return the named scopes of an instruction's path, without what control flow and the operation add to it."""
    scopes = [part for part in path.split("/")[:-1] if not STRUCTURE.fullmatch(part)]
    return "/".join(scopes[:DEPTH]) or UNNAMED


def self_times(ops: Sequence[Op]) -> list[tuple[Op, float]]:
    """Return the nanoseconds of each operation, without those that lie inside it on the same line."""
    ops = sorted(ops, key=lambda op: (op.line, op.start, -op.stop))  # what lies around others comes before them
    own, around = [op.stop - op.start for op in ops], []
    for index, op in enumerate(ops):
        while around and (ops[around[-1]].line != op.line or ops[around[-1]].stop <= op.start):
            around.pop()
        if around:
            own[around[-1]] -= op.stop - op.start
        around.append(index)
    return [(op, max(nanoseconds, 0.0)) for op, nanoseconds in zip(ops, own, strict=True)]


def busy_time(ops: Sequence[Op]) -> float:
    """Return the nanoseconds in which at least one operation ran."""
    busy, reached = 0.0, float("-inf")
    for op in sorted(ops, key=lambda op: op.start):
        busy += max(op.stop - max(op.start, reached), 0.0)
        reached = max(reached, op.stop)
    return busy


def _most_like(module: str, ops: Sequence[Op], paths: Paths) -> Mapping[str, str]:
    """Choose, of the programs with a module's name, the one that has most of the instructions that ran."""
    ran = {op.name for op in ops if op.module == module}
    return max(paths.get(module, ()), key=lambda program: len(ran & program.keys()), default={})
