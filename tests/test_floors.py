"""The house plan, checked: imports go down, never in circles; libraries are declared, heavy ones off the network.

All imports count: at the head of a module, inside functions, under TYPE_CHECKING, relative ones. Only the tests that
ask what an import of a module brings along look at its head alone.
"""

import ast
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FRONT_DOOR = "omniforcing_jax"  # its __init__ names what others may import, and imports nothing before that
FLOORS = {
    0: ["strict_json", "config", "layout", "schedule", "streams"],
    1: ["parallel"],
    2: ["io", "nn"],
    3: ["model", "codecs", "text"],
    4: ["rollout", "guidance", "pipeline", "judge"],
    5: ["stream", "distill"],
    6: ["sample", "train", "chime", "serve"],
    7: ["cli", "__main__"],
}
FLOOR_OF = {f"omniforcing_jax.{room}": floor for floor, rooms in FLOORS.items() for room in rooms}
FLOOR_OF |= {FRONT_DOOR: 7, "converters": 4, "experiments": 8}
MODULE_OF = {
    "orbax-checkpoint": "orbax",
    "ltx-core": "ltx_core",
    "prometheus-client": "prometheus_client",
}  # distributions that are imported by another name
NETWORK = [
    "omniforcing_jax.rollout",
    "omniforcing_jax.guidance",
    "omniforcing_jax.io.weights",
    "omniforcing_jax.pipeline.pipeline",
]


class Module(NamedTuple):
    """A module's syntax tree, and the package that its relative imports start from."""

    tree: ast.Module
    package: str


def read_modules():
    """Map the names of all modules to their trees."""
    found = {}
    for path in (
        path for top in ("omniforcing_jax", "converters", "experiments") for path in (ROOT / top).rglob("*.py")
    ):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(ast.parse(path.read_text()), ".".join(parts[:-1]))
    return found


MODULES = read_modules()


def imported(name, *, head_only=False):
    """Names that a module imports: modules, and names in modules; relative ones made absolute."""
    module, found = MODULES[name], set()
    for node in head(module.tree) if head_only else ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module.package, node)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def absolute(package, node):
    """Return the module that an import from it names."""
    if not node.level:
        return node.module
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def head(tree):
    """Statements that run on import: not those inside functions or under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from ast.walk(node)


def ours(name, **kwargs):
    """Modules of the repository that a module imports, each as the longest name that is a module."""
    found = set()
    for target in imported(name, **kwargs):
        while target and target not in MODULES:
            target = target.rpartition(".")[0]
        found.add(target)
    return found - {"", name}


def libraries(name, **kwargs):
    """Other people's packages that a module imports."""
    tops = {target.partition(".")[0] for target in imported(name, **kwargs)}
    return tops - set(sys.stdlib_module_names) - {"omniforcing_jax", "converters", "experiments"}


def room(name):
    return ".".join(name.split(".")[: 2 if name.startswith("omniforcing_jax.") else 1])


def find_circle(graph):
    """Return a circle of the graph, or None; a path that comes back to where it was."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        path.append(node)
        for other in sorted(graph[node]):
            if circle := visit(other):
                return circle
        done.add(path.pop())
        return None

    return next((circle for node in sorted(graph) if (circle := visit(node))), None)


def test_circles_are_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_relative_imports_are_made_absolute():
    (node,) = ast.parse("from ..cli import main").body
    assert absolute("converters.check", node) == "converters.cli"
    (node,) = ast.parse("from . import rules").body
    assert absolute("converters", node) == "converters"
    (node,) = ast.parse("from .rules import gather").body
    assert absolute("converters.formats", node) == "converters.formats.rules"


@pytest.mark.parametrize("name", sorted(set(MODULES) - {FRONT_DOOR}))
def test_imports_go_down_the_floors(name):
    assert room(name) in FLOOR_OF, f"{name}: give it a floor in {__file__}"
    for other in ours(name):
        assert FLOOR_OF[room(other)] <= FLOOR_OF[room(name)], f"{name} imports {other} from a floor above"


@pytest.mark.parametrize("top", ["omniforcing_jax", "converters", "experiments"])
def test_no_modules_import_each_other_in_a_circle(top):
    graph = {name: ours(name) for name in MODULES}
    below = {name: others for name, others in graph.items() if name.partition(".")[0] == top}
    circle = find_circle({name: others & below.keys() for name, others in below.items()})
    assert circle is None, " -> ".join(circle)


def test_no_rooms_import_each_other_in_a_circle():
    graph = {room(name): set() for name in MODULES}
    for name in MODULES:
        graph[room(name)] |= {room(other) for other in ours(name)} - {room(name)}
    circle = find_circle(graph)
    assert circle is None, " -> ".join(circle)


def test_the_front_door_imports_nothing_before_it_is_asked():
    assert not ours(FRONT_DOOR, head_only=True)
    assert not libraries(FRONT_DOOR)


def test_only_the_program_imports_from_the_front_door():
    users = {name for name in MODULES if name.startswith("omniforcing_jax.") and FRONT_DOOR in ours(name)}
    assert users == {"omniforcing_jax.cli.main"}  # for the version


def test_converters_do_not_know_training_or_streams():
    for name in MODULES:
        if room(name) == "converters":
            assert not {o for o in ours(name) if room(o) in ("omniforcing_jax.train", "omniforcing_jax.stream")}, name


def test_the_judge_knows_no_network_and_no_stream():
    judge = [name for name in MODULES if room(name) == "omniforcing_jax.judge"]
    allowed = {f"omniforcing_jax.io.{name}" for name in ("media_file", "atomic_write", "extras")}
    allowed |= {"omniforcing_jax.codecs.mel_filters"}
    assert judge
    for name in judge:
        assert {other for other in ours(name) if room(other) != "omniforcing_jax.judge"} <= allowed, name
        assert not libraries(name) & {"jax", "flax"}, name


def reached_from(start):
    """Modules that an import of one brings along."""
    reached, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += ours(name, head_only=True)
    return reached


def declared():
    """Modules of the distributions that pyproject.toml names: for everybody, and by extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def modules(requirements):
        names = {requirement.split(">")[0].split("=")[0].split("[")[0].strip() for requirement in requirements}
        return {MODULE_OF.get(name, name) for name in names}

    extras = {extra: modules(names) for extra, names in project["optional-dependencies"].items()}
    return modules(project["dependencies"]), extras


CORE, EXTRAS = declared()
OPTIONAL = {
    module: extra for extra, modules in EXTRAS.items() if extra not in ("gpu", "tpu", "dev") for module in modules
}
NOT_FOR_A_NETWORK = {*OPTIONAL, "av", "tokenizers", "tyro", "scipy", "rich", "librosa"}


@pytest.mark.parametrize("start", [name for name in NETWORK if name in MODULES])
def test_the_network_runs_where_heavy_libraries_are_absent(start):
    for name in sorted(reached_from(start)):
        heavy = libraries(name, head_only=True) & NOT_FOR_A_NETWORK
        assert not heavy, f"{name}, on the path of {start}, imports {heavy} on import"


def test_the_core_is_small():
    assert len(CORE) <= 10
    assert not CORE & OPTIONAL.keys()


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not name.startswith("experiments")))
def test_what_a_module_imports_is_declared(name):
    assert libraries(name) <= CORE | OPTIONAL.keys(), name


def calls_of_need(name):
    """Pairs of library and extra that a module, or the room that it is in, checks by `need`."""
    found = set()
    for each in {name, room(name)} & MODULES.keys():
        for node in ast.walk(MODULES[each].tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("need"):
                (extra,) = (keyword.value.value for keyword in node.keywords if keyword.arg == "extra")
                found |= {(argument.value, extra) for argument in node.args}
    return found


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not name.startswith("experiments")))
def test_an_optional_library_is_asked_for_by_its_extra(name):
    for library in libraries(name) & OPTIONAL.keys():
        assert (library, OPTIONAL[library]) in calls_of_need(name), f"{name} imports {library} without need(...)"
        if room(name) not in ("omniforcing_jax.train", "omniforcing_jax.serve"):
            assert library not in libraries(name, head_only=True), f"{name} imports {library} at its head"
