"""Text contexts: the output of every text encoder, and the text input of every network."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class TextContexts(NamedTuple):
    """Features of prompts for both streams, and the mask over their tokens.

    Attributes:
        video: Features for the video stream.
        audio: Features for the audio stream.
        mask: 1 where a token may be seen; None shows all.
    """

    video: Float[Array, "B X D_v"]
    audio: Float[Array, "B X D_a"]
    mask: Int[Array, "B X"] | None
