"""Optional libraries: each belongs to an extra of the package, and a missing one is answered by its name.

need("matplotlib", extra="judge")
from matplotlib.figure import Figure
"""

import importlib.util
import sys


class MissingExtraError(ImportError, ValueError):
    """An optional library is not installed.

    It is a ValueError as well, so that every command answers it as it answers bad input: in one line.
    """


def need(*modules: str, extra: str) -> None:
    """Check that optional libraries are installed, without importing them.

    Args:
        modules: Their top-level modules.
        extra: The extra of omniforcing_jax that installs them.

    Raises:
        MissingExtraError: One is missing; names it and the command that installs it.
    """
    for module in modules:
        if not is_installed(module):
            raise MissingExtraError(f"{module} is not installed: pip install 'omniforcing_jax[{extra}]'", name=module)


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported, without importing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
