"""Given frames among the tokens of a clip: they replace tokens of its own, or follow behind them with places of theirs.

A given token is held at a share of each step's noise level, 1 - strength, and its clean estimate is mixed with what is
given. The network sees its own noise level for every token. Appended tokens take part in every attention and are cut
off before the clip is decoded.

Source: ltx-core@1.0.0:conditioning/types/latent_cond.py; ltx-core@1.0.0:conditioning/types/keyframe_cond.py;
diffusers@0.42.1:pipelines/ltx2/pipeline_ltx2_condition.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.model.positions import FramePositions
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.schedule import add_noise
from omniforcing_jax.streams import Streams


class GivenFrames(NamedTuple):
    """Latents that are given.

    Attributes:
        tokens: Clean tokens, [1, G, C].
        per_frame: Tokens of one latent frame.
        strength: 1 keeps them as they are, 0 lets them be made.
        place: Positions of frames that are appended; None replaces the first tokens of the clip.
    """

    tokens: Float[Array, "1 G C"]
    per_frame: int
    strength: float
    place: FramePositions | None


@struct.dataclass
class Guide:
    """What is given of a clip's video: its own T tokens first, then those that are appended.

    Attributes:
        clean: Given tokens, zeros where nothing is given, float32 [1, T + G, C].
        strength: Of groups of consecutive tokens, float32 [U]; 0 where nothing is given.
        appended: Positions of appended frames.
    """

    clean: ArrayLeaf
    strength: ArrayLeaf
    appended: tuple[FramePositions, ...]


def make_guide(given: Sequence[GivenFrames], tokens: int) -> Guide:
    """Lay given frames out among the video tokens of a clip.

    Args:
        given: The frames; appended ones follow in this order.
        tokens: T, the clip's own video tokens.
    """
    group = math.gcd(tokens, *(each.per_frame for each in given))
    replaced, appended = ([each for each in given if (each.place is not None) == is_appended] for is_appended in (0, 1))
    own = jnp.zeros((1, tokens, given[0].tokens.shape[-1]), jnp.float32)
    strength = np.zeros(tokens // group, np.float32)
    for each in replaced:
        own = own.at[:, : each.tokens.shape[1]].set(each.tokens)
        strength[: each.tokens.shape[1] // group] = each.strength
    further = [np.full(each.tokens.shape[1] // group, each.strength, np.float32) for each in appended]
    return Guide(
        clean=jnp.concatenate([own, *(each.tokens.astype(jnp.float32) for each in appended)], axis=1),
        strength=jnp.asarray(np.concatenate([strength, *further])),
        appended=tuple(each.place for each in appended if each.place is not None),
    )


def video_levels(guide: Guide, sigma: Float[Array, " B"]) -> Float[Array, "B U"]:
    """Return the noise level of each group of video tokens."""
    return sigma[:, None] * (1 - guide.strength)[None, :]


def begin_guided(guide: Guide, noise: Streams, start: Streams | None, sigma: Float[Array, ""] | float) -> Streams:
    """Return the latents that guided clips start from.

    Args:
        guide: What is given.
        noise: Noise, [B, T + G, C] and [B, A, C].
        start: Latents at `sigma` to start from instead, [B, T, C] and [B, A, C].
        sigma: The first noise level.
    """
    clean, strength = jnp.broadcast_to(guide.clean, noise.video.shape), _per_token(guide)
    video = add_noise(clean, noise.video, (sigma * (1 - strength))[None, :])
    if start is None:
        return Streams(video, noise.audio)
    started = jnp.concatenate([start.video, video[:, start.video.shape[1] :]], axis=1)
    return Streams(choose_given(guide, video, started), start.audio)


def hold_given(guide: Guide, x0: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
    """Mix a clean estimate of all video tokens with what is given."""
    strength = _per_token(guide)[None, :, None]
    return x0 * (1 - strength) + guide.clean * strength


def choose_given(guide: Guide, given: Float[Array, "B S C"], made: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
    """Take the tokens that are given from one array of all video tokens, and those that are made from another."""
    return jnp.where((_per_token(guide) > 0)[None, :, None], given, made)


def cut_appended(latents: Streams, tokens: int) -> Streams:
    """Cut off the tokens behind a clip's own T."""
    return latents._replace(video=latents.video[:, :tokens])


def _per_token(guide: Guide) -> Float[Array, " S"]:
    return jnp.repeat(guide.strength, guide.clean.shape[1] // guide.strength.shape[0])
