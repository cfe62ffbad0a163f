"""Prompts to try, for weights that know the small world."""

from omniforcing_jax.chime.prompts import phrasings

COLOURS = (("red", "blue"), ("green",), ("yellow", "purple"), ("cyan",), ("red", "green", "purple"))


def suggest() -> tuple[str, ...]:
    """Return prompts of the small world, one to three balls each."""
    return tuple(phrasings(colours)[0] for colours in COLOURS)
