"""From the hidden states of a text model to features: normalise all states, then project them for each stream.

LTX-2 2.0 and 2.3 differ in the norm, and in whether the streams share the projection.

Source: ltx-core@1.0.0:text_encoders/gemma/feature_extractor.py.
"""

import enum
import math

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.norm import EPSILON, rms_norm
from omniforcing_jax.streams import Streams

SPREAD = 8.0  # range of a prompt's values in one state after LTX-2 2.0's norm


class FeatureNorm(enum.StrEnum):
    """How hidden states are normalised.

    PER_PROMPT: by the mean and range of each state over all tokens and channels of the prompt (LTX-2 2.0).
    PER_TOKEN: by the root mean square of each token's state (LTX-2.3).
    """

    PER_PROMPT = "per_prompt"
    PER_TOKEN = "per_token"


@struct.dataclass
class Features:
    """Projections of all states of a token, channel-major, to features."""

    video: Linear  # Z * D -> D_v
    audio: Linear | None  # None: the video's features serve both streams


def features_spec(norm: FeatureNorm, inputs: int, video: int, audio: int) -> Features:
    """Declare the projections; `inputs` is states times channels."""
    if norm is FeatureNorm.PER_PROMPT:
        return Features(video=linear_spec(inputs, video, (None, "embed"), bias=False), audio=None)
    return Features(
        video=linear_spec(inputs, video, (None, "embed")), audio=linear_spec(inputs, audio, (None, "embed"))
    )


def extract_features(
    norm: FeatureNorm, params: Features, states: Float[Array, "Z B X D"], mask: Int[Array, "B X"]
) -> Streams:
    """Return the features of both streams, [B, X, D_v] and [B, X, D_a], in the states' type; norms are float32.

    Args:
        norm: How the states are normalised.
        params: The projections.
        states: All hidden states of the text model.
        mask: 1 = a token, 0 = padding. Padding does not count, and its normalised states are zero.
    """
    is_token = (mask != 0)[None, :, :, None]
    if norm is FeatureNorm.PER_PROMPT:
        video = project(params.video, _flatten(jnp.where(is_token, _norm_per_prompt(states, is_token), 0)))
        return Streams(video, video)
    if params.audio is None:
        raise ValueError("audio=None: features that are normalised per token need a projection for each stream")
    flat = _flatten(jnp.where(is_token, rms_norm(states), 0))
    width = states.shape[-1]

    def scaled(p: Linear) -> Array:
        return project(p, flat * jnp.asarray(math.sqrt(p.shape[0] / width), flat.dtype))

    return Streams(scaled(params.video), scaled(params.audio))


def _norm_per_prompt(states: Float[Array, "Z B X D"], is_token: Bool[Array, "1 B X 1"]) -> Float[Array, "Z B X D"]:
    """Subtract the mean and divide by the range, both over all tokens and channels."""
    wide, over = states.astype(jnp.float32), (2, 3)
    count = jnp.sum(is_token, axis=over, keepdims=True) * states.shape[-1]
    mean = jnp.sum(jnp.where(is_token, wide, 0), axis=over, keepdims=True) / (count.astype(jnp.float32) + EPSILON)
    low = jnp.min(jnp.where(is_token, wide, jnp.inf), axis=over, keepdims=True)
    high = jnp.max(jnp.where(is_token, wide, -jnp.inf), axis=over, keepdims=True)
    return (SPREAD * (wide - mean) / (high - low + EPSILON)).astype(states.dtype)


def _flatten(states: Float[Array, "Z B X D"]) -> Float[Array, "B X Z*D"]:
    """Concatenate all states of a token, in the order channel * Z + state."""
    return jnp.moveaxis(states, 0, -1).reshape(*states.shape[1:3], -1)
