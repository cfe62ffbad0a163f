"""Text contexts: what every text encoder gives and every network reads."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class TextContexts(NamedTuple):
    """Features of prompts for both streams, and which tokens may be seen (None: all)."""

    video: Float[Array, "B X Cv"]
    audio: Float[Array, "B X Ca"]
    mask: Int[Array, "B X"] | None
