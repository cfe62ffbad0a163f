"""The two streams, video and audio, as one value that JAX sees as a pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Streams(NamedTuple):
    """One value for video and one for audio.

    Most often these are latent tokens, [..., B, T, C] of video and [..., B, A, C] of audio without sinks. Work on the
    arrays of both streams is a `jax.tree.map`; `map_streams` is for values that are trees themselves.
    """

    video: Any
    audio: Any


def map_streams(f: Callable[..., Any], *streams: Streams) -> Streams:
    """Call `f` on the video values, then on the audio values, whatever trees they are."""
    return Streams(video=f(*(s.video for s in streams)), audio=f(*(s.audio for s in streams)))
