"""Measure the shape of the code: rooms, circles, long argument lists, lines.

    python -m experiments.docs.measure_code            # this checkout
    python -m experiments.docs.measure_code --root DIR # another one, to compare

Prints one figure per line. A room is a folder of the package, or a file in its root. A circle is a set of rooms that
import each other, function bodies and TYPE_CHECKING included.
"""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import tyro

TOPS = ("omniforcing_jax", "converters", "experiments")
MANY = 8  # arguments
Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Map dotted module names to their syntax trees."""
    files = [path for top in TOPS for path in sorted((root / top).rglob("*.py"))]
    dotted = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    return {name: ast.parse(path.read_text()) for path, name in dotted.items()}


def imported(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of ours that a module imports anywhere, relative imports included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(name.split(".")[: -node.level]) + "." if node.level else ""
            module = (base + (node.module or "")).strip(".")
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found & known - {name}


def room(name: str) -> str:
    """The folder that a module lies in; a file in the package's root is a room of its own."""
    return ".".join(name.split(".")[: 2 if name.startswith("omniforcing_jax.") else 1])


def circles(graph: dict[str, set[str]]) -> int:
    """Count the sets of two or more nodes that reach each other."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), set()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    reached = {name: reach(name) for name in graph}
    return len({frozenset(b for b in reached[a] if a in reached.get(b, set())) for a in graph if a in reached[a]})


def functions(tree: ast.Module) -> Iterator[Function]:
    """List all functions and methods of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def argument_count(function: Function) -> int:
    """Count the arguments of a function, `self` and `cls` left out."""
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + (a.vararg is not None) + (a.kwarg is not None)


def main(root: Path = Path(__file__).parents[2]) -> None:
    """Print the figures of a checkout.

    Args:
        root: The checkout.
    """
    modules = read_modules(root)
    graph: dict[str, set[str]] = {}
    for name, tree in modules.items():
        others = {room(other) for other in imported(name, tree, set(modules))} - {room(name), "omniforcing_jax"}
        if name != "omniforcing_jax":
            graph[room(name)] = graph.get(room(name), set()) | others
    everything = [function for tree in modules.values() for function in functions(tree)]
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for f in everything]
    package = [path.read_text() for path in (root / "omniforcing_jax").rglob("*.py")]
    opened = [f for f in everything if f.name == "open_stream" and ast.get_docstring(f)]
    figures = {
        "files in the package's root": sum(path.is_file() for path in (root / "omniforcing_jax").iterdir()),
        "rooms": len(graph),
        "circles of rooms": circles(graph),
        "arrows between rooms": sum(map(len, graph.values())),
        f"functions with {MANY} or more arguments": sum(argument_count(f) >= MANY for f in everything),
        "zip(..., strict=True) in the package": sum(text.count("strict=True") for text in package),
        "arguments of open_stream": max(map(argument_count, opened), default=0),
        "functions": len(everything),
        "lines of a function, median": statistics.median(lengths),
        "lines of a function, longest": max(lengths),
        "lines without tests": sum(
            len(path.read_text().splitlines()) for top in TOPS for path in (root / top).rglob("*.py")
        ),
    }
    for name, value in figures.items():
        print(f"{name:<44} {value:g}")


if __name__ == "__main__":
    tyro.cli(main)
