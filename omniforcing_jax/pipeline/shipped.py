"""The weights that ship with the package, in half precision: chime, a small world of bouncing balls.

This is the one place that turns what a user calls weights into a folder.
"""

from pathlib import Path

from omniforcing_jax.io.atomic_write import AnyPath

CHIME_WEIGHTS = Path(__file__).parent.parent / "assets" / "chime"
"""Folder of `student`, `teacher` and the `codecs` that both use."""

STUDENT, TEACHER = "chime", "chime-teacher"
"""Names that stand for the shipped student, which streams, and the shipped teacher, which samples clips."""

FOLDERS = {STUDENT: CHIME_WEIGHTS / "student", TEACHER: CHIME_WEIGHTS / "teacher"}


def find_weights(weights: AnyPath | None, default: str = STUDENT) -> Path:
    """Return the folder of some weights.

    Args:
        weights: A weights folder, the name of shipped weights, or None. A folder that is itself called "chime" is
            given as `./chime`.
        default: Name of the shipped weights that None stands for.
    """
    name = default if weights is None else weights
    return FOLDERS.get(name, Path(name)) if isinstance(name, str) else Path(name)
