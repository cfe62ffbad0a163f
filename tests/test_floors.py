"""The house plan, checked: imports go down, never in circles; heavy libraries stay off the network's path."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    0: ["strict_json", "config", "layout", "schedule", "streams"],
    1: ["parallel"],
    2: ["io", "nn"],
    3: ["model", "codecs", "text"],
    4: ["rollout", "guidance", "pipeline", "judge"],
    5: ["stream", "distill"],
    6: ["sample", "train", "chime"],
    7: ["cli", "__main__"],
}
FLOOR_OF = {f"omniforcing_jax.{room}": floor for floor, rooms in FLOORS.items() for room in rooms}
FLOOR_OF |= {"converters": 4, "experiments": 8}
HEAVY = {"av", "librosa", "grain", "array_record", "lmdb", "matplotlib", "orbax", "torch", "tyro", "tensorboardX"}
HEAVY |= {"tokenizers"}
NETWORK = [
    "omniforcing_jax.rollout",
    "omniforcing_jax.guidance",
    "omniforcing_jax.io.weights",
    "omniforcing_jax.pipeline.pipeline",
]


def modules():
    """Map module names to their syntax trees."""
    files = [path for top in ("omniforcing_jax", "converters", "experiments") for path in (ROOT / top).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    return {name: ast.parse(path.read_text()) for path, name in names.items()}


MODULES = modules()


def imports(tree, *, everywhere=True):
    """Names that a module imports, function bodies included or not."""
    found = set()
    for node in ast.walk(tree) if everywhere else top_level(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(tree):
    """Statements that run on import: not those inside functions or under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from ast.walk(node)


def ours(tree, **kwargs):
    return {name for name in imports(tree, **kwargs) if name in MODULES}


def room(name):
    return ".".join(name.split(".")[: 2 if name.startswith("omniforcing_jax.") else 1])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_the_floors(name):
    if name == "omniforcing_jax":
        assert not ours(MODULES[name])
        return
    assert room(name) in FLOOR_OF, f"{name}: give it a floor in {__file__}"
    for other in ours(MODULES[name]) - {"omniforcing_jax"}:
        assert FLOOR_OF[room(other)] <= FLOOR_OF[room(name)], f"{name} imports {other} from a floor above"


def test_nothing_imports_in_a_circle():
    graph = {name: ours(tree, everywhere=False) - {name} for name, tree in MODULES.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            # A package's own __init__ is entered by importing its parts; that is no circle.
            if not name.startswith(other + "."):
                visit(other)
        done.add(path.pop())

    for name in sorted(graph):
        visit(name)


def test_converters_do_not_know_training_or_streams():
    for name, tree in MODULES.items():
        if room(name) == "converters":
            assert not {o for o in ours(tree) if room(o) in ("omniforcing_jax.train", "omniforcing_jax.stream")}, name


def test_the_judge_knows_no_network_and_no_stream():
    judge = {name: tree for name, tree in MODULES.items() if room(name) == "omniforcing_jax.judge"}
    assert judge
    for name, tree in judge.items():
        allowed = ("omniforcing_jax.judge", "omniforcing_jax.io.media_file", "omniforcing_jax.io.atomic_write")
        assert all(other.startswith(allowed) for other in ours(tree) - {"omniforcing_jax.io"}), name
        assert not {i for i in imports(tree) if i.split(".")[0] in ("jax", "flax")}, name


@pytest.mark.parametrize("start", [name for name in NETWORK if name in MODULES])
def test_the_network_runs_where_heavy_libraries_are_absent(start):
    reached, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += ours(MODULES[name], everywhere=False)
    for name in sorted(reached):
        heavy = {i.split(".")[0] for i in imports(MODULES[name], everywhere=False)} & HEAVY
        assert not heavy, f"{name}, on the path of {start}, imports {heavy} on import"
