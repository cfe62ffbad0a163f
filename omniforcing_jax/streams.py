"""Two streams as one value: what belongs to video and what belongs to audio, as a pytree."""

from typing import Any, NamedTuple


class Streams(NamedTuple):
    """One value per stream.

    Most often tokens, [..., B, T, C] of video and [..., B, A, C] of audio without sinks. What is done to each stream
    is a `jax.tree.map`.
    """

    video: Any = None
    audio: Any = None
