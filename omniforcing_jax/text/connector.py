"""The connectors: from features of a prompt to the text contexts of both streams.

Each stream has a small bidirectional transformer. Learned registers fill the tokens that the prompt leaves free, so
every token of a context may be seen.

Source: ltx-core@1.0.0:text_encoders/gemma/embeddings_connector.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from omniforcing_jax.config import GridPrecision, RotaryConfig, RotaryKind, RotatedHeads
from omniforcing_jax.nn.attention import Attention, Site, attend, attention_spec
from omniforcing_jax.nn.mlp import Mlp, apply_mlp, mlp_spec
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.nn.rope import Rotary, angles, combine, frequencies
from omniforcing_jax.parallel.spec import Leaf, Spec, array, normal, stacked
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_LAYERS, Config, require, require_counts
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.text.features import FeatureNorm, Features, extract_features, features_spec

MLP_RATIO = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConnectorConfig(RotatedHeads):
    """One stream's connector.

    Attributes:
        layers: Layers of its transformer.
        registers: Learned vectors, whose number must divide the tokens of a context.
    """

    layers: int
    registers: int

    def __post_init__(self):
        require_counts(self, MOST_LAYERS, "layers")
        require_counts(self, LARGEST_SIZE, "registers")
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConnectorsConfig(Config):
    """Everything between a text model and the streams.

    Attributes:
        text_width: Channels of a hidden state of the text model.
        text_states: Z, the hidden states per token of the text model.
        norm: How the states are normalised. With LTX-2 2.0's norm, the features of both streams have the text's width.
        video: The video stream's connector.
        audio: The audio stream's connector.
        gated_attention: Whether every attention has a gate per head (LTX-2.3).
        tokens: X, the tokens of a context; prompts are padded or cut to it.
        rotary: Position embedding: which channels form a pair, as in `RotaryConfig`.
        theta: Ratio of the highest to the lowest frequency.
        grid: Precision in which the frequencies were computed.
        max_position: Positions are scaled so that 0 .. max becomes -1 .. 1.
    """

    text_width: int
    text_states: int
    norm: FeatureNorm
    video: ConnectorConfig
    audio: ConnectorConfig
    gated_attention: bool = False
    tokens: int = 1024
    rotary: RotaryKind = RotaryKind.SPLIT
    theta: float = 10_000.0
    grid: GridPrecision = GridPrecision.FLOAT64
    max_position: int = 4096

    def __post_init__(self):
        require_counts(self, LARGEST_SIZE, "text_width", "text_states", "tokens", "max_position")
        for name, stream in (("video", self.video), ("audio", self.audio)):
            rule = f"must be a multiple of {name}.registers={stream.registers}"
            require(self.tokens % stream.registers == 0, "tokens", self.tokens, rule)
            if self.norm is FeatureNorm.PER_PROMPT:
                rule = f"must be text_width={self.text_width}, both streams share one projection"
                require(stream.width == self.text_width, f"{name}.width", stream.width, rule)


@struct.dataclass
class ConnectorLayer:
    """One layer; its norms have no weights."""

    attn: Attention
    mlp: Mlp


@struct.dataclass
class Connector:
    """One stream's connector."""

    registers: Leaf  # [registers, D]
    layers: ConnectorLayer  # every leaf [L, ...]


@struct.dataclass
class Connectors:
    """All weights between a text model and the streams."""

    features: Features
    video: Connector
    audio: Connector


def connectors_spec(config: ConnectorsConfig) -> Connectors:
    """Declare the weights."""
    inputs = config.text_width * config.text_states
    return Connectors(
        features=features_spec(config.norm, inputs, config.video.width, config.audio.width),
        video=_connector_spec(config, config.video),
        audio=_connector_spec(config, config.audio),
    )


def _connector_spec(config: ConnectorsConfig, stream: ConnectorConfig) -> Connector:
    width = stream.width
    layer = ConnectorLayer(
        attn=attention_spec(width, width, stream.heads, stream.head_size, gated=config.gated_attention),
        mlp=mlp_spec(width, MLP_RATIO * width, width),
    )
    return Connector(
        registers=Spec((stream.registers, width), (None, None), normal(1.0)),
        layers=stacked(layer, stream.layers),
    )


def connector_rotary(config: ConnectorsConfig, stream: ConnectorConfig, tokens: int) -> Rotary:
    """Return the rotations of positions 0 to `tokens` - 1."""
    grid = frequencies(RotaryConfig(theta=config.theta, grid=config.grid), 1, stream.width)
    fractions = np.arange(tokens, dtype=np.float64) / config.max_position
    return combine((angles(grid, fractions),), stream.width, stream.heads, config.rotary)


def make_contexts(
    config: ConnectorsConfig, params: Connectors, states: Float[Array, "Z B X D"], mask: Int[Array, "B X"]
) -> TextContexts:
    """Turn all hidden states of prompts into text contexts, in the states' type.

    Args:
        config: The connectors' config.
        params: Their weights, in any floating type.
        states: Hidden states of the text model, with X = `config.tokens`.
        mask: 1 = a token, 0 = padding.

    Returns:
        Contexts without padding: the prompt's tokens, moved to the front, then registers.
    """
    video, audio = extract_features(config.norm, params.features, states, mask)
    tokens = mask.shape[1]
    return TextContexts(
        video=connect(params.video, video, mask, connector_rotary(config, config.video, tokens)),
        audio=connect(params.audio, audio, mask, connector_rotary(config, config.audio, tokens)),
        mask=jnp.ones_like(mask),
    )


def connect(
    p: Connector, features: Float[Array, "B X D"], mask: Int[Array, "B X"], rotary: Rotary
) -> Float[Array, "B X D"]:
    """Run one stream's connector on features; the number of registers divides X."""

    def body(x: Array, layer: ConnectorLayer) -> tuple[Array, None]:
        normed = rms_norm(x)
        x = x + attend(layer.attn, normed, normed, Site(rotary, rotary))[0]
        return x + apply_mlp(layer.mlp, rms_norm(x)), None

    x, _ = jax.lax.scan(body, fill_with_registers(p.registers, features, mask), p.layers)
    return rms_norm(x)


def fill_with_registers(
    registers: Leaf, features: Float[Array, "B X D"], mask: Int[Array, "B X"]
) -> Float[Array, "B X D"]:
    """Move tokens to the front, in order, and fill position i after them with register i modulo their number."""
    positions, is_token = jnp.arange(mask.shape[1]), mask != 0
    order = jnp.argsort(~is_token, axis=1, stable=True)
    front = jnp.take_along_axis(features, order[:, :, None], axis=1)
    taken = positions[None, :] < jnp.sum(is_token, axis=1, keepdims=True)
    vectors = array(registers).astype(features.dtype)
    behind = vectors[positions % len(vectors)]
    return jnp.where(taken[:, :, None], front, behind[None])
