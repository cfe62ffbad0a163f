"""The inputs of a recording: one small clip, noise levels that tell the streams apart, and a prompt with padding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH, GRID, AUDIO_FRAMES, WORDS = 2, (3, 2, 3), 17, 6  # latent frames, rows and columns of the picture
TOKENS = GRID[0] * GRID[1] * GRID[2]
VARIANTS = {"scalar": False, "token": True}  # whether each token has a noise level of its own


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What both streams read in one forward.

    Attributes:
        latents: Tokens of video [B, T, C] and audio [B, A, C].
        contexts: Text features of video and audio [B, X, D].
        sigmas: Noise level of each sample [B], of video and audio.
        token_sigmas: Noise level of each token, [B, T] and [B, A].
        text_mask: 1 where a word may be seen [B, X].
    """

    latents: tuple[np.ndarray, np.ndarray]
    contexts: tuple[np.ndarray, np.ndarray]
    sigmas: tuple[np.ndarray, np.ndarray]
    token_sigmas: tuple[np.ndarray, np.ndarray]
    text_mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of another library, loaded.

    Attributes:
        name: The library and its version.
        channels: Latent channels of video and audio.
        widths: Widths of the text features of video and audio.
        settings: What the library took from the file: kind of rotary pairs, frequency grid, gate multiplier.
        run: Returns the velocities of both streams.
    """

    name: str
    channels: tuple[int, int]
    widths: tuple[int, int]
    settings: Mapping[str, Any]
    run: Callable[[Inputs], tuple[np.ndarray, np.ndarray]]


def draw_inputs(peer: Peer) -> dict[str, Inputs]:
    """Draw the inputs of each variant; all share latents and contexts."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(BATCH, *shape)).astype(np.float32)

    counts = (TOKENS, AUDIO_FRAMES)
    video, audio = (normal(count, channels) for count, channels in zip(counts, peer.channels, strict=True))
    context_v, context_a = (normal(WORDS, width) for width in peer.widths)
    sigmas = (np.array([0.7, 0.3], np.float32), np.array([0.2, 0.9], np.float32))
    same = [np.repeat(sigma[:, None], count, 1) for sigma, count in zip(sigmas, counts, strict=True)]
    drawn = [rng.uniform(0.05, 0.95, (BATCH, count)).astype(np.float32) for count in counts]
    mask = np.array([[0, 0] + [1] * (WORDS - 2), [1] * WORDS], np.int64)
    return {
        name: Inputs(
            latents=(video, audio),
            contexts=(context_v, context_a),
            sigmas=sigmas,
            token_sigmas=(levels[0], levels[1]),
            text_mask=mask,
        )
        for name, levels in zip(VARIANTS, (same, drawn), strict=True)
    }
