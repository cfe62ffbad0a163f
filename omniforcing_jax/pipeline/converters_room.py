"""Modules of the converters, imported by name: beside this package in a checkout, inside it where it is installed."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[1]


def import_converters(name: str) -> ModuleType:
    """Import a module of the converters, such as `cli`."""
    spec = importlib.util.find_spec("converters")
    beside = PACKAGE.parent / "converters" / "__init__.py"
    is_checkout = spec is not None and spec.origin is not None and Path(spec.origin).resolve() == beside.resolve()
    return importlib.import_module(f"converters.{name}" if is_checkout else f"omniforcing_jax.converters.{name}")
