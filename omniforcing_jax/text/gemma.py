"""Gemma 3 of any size as a text encoder: token ids to the hidden states of every layer.

Layers are stacked and scanned. Whether a layer slides (it sees `window` tokens and uses the local rotation) or is
global is data of the layer. The vision tower and the language head are not here.

Source: transformers@5.23.0:models/gemma3/modeling_gemma3.py; Gemma 3 technical report (arXiv 2503.19786), sec. 2.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from omniforcing_jax.config import RotaryKind
from omniforcing_jax.nn.kernels import dot_product_attention
from omniforcing_jax.nn.kv_segments import KVSegment
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.mask import mask_bias
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.nn.rope import Rotary, rotate
from omniforcing_jax.parallel.spec import ArrayLeaf, Leaf, Spec, array, normal, stacked, zeros
from omniforcing_jax.strict_json import LARGEST_SIZE, MOST_LAYERS, Config, require, require_counts

MOST_TOKENS = 2**24  # of a vocabulary or a window: far more than any model has


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaConfig(Config):
    """A Gemma 3 text model.

    Attributes:
        vocabulary: Rows of the embedding table.
        width: Channels of a hidden state.
        mlp_width: Channels inside the feed-forward part.
        heads: Query heads.
        kv_heads: Key heads; each serves heads / kv_heads query heads.
        head_size: Channels of a head.
        query_scale: Scores are divided by its square root. It is the head size, except in the largest model.
        window: Tokens that a sliding layer sees, the current one included.
        is_global: For each layer, whether it sees all tokens before it.
        local_theta: Longest over shortest period of the rotations of sliding layers.
        global_theta: The same for global layers.
        global_stretch: Positions in global layers are divided by it.
    """

    vocabulary: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_size: int
    query_scale: float
    window: int
    is_global: tuple[bool, ...]
    local_theta: float = 10_000.0
    global_theta: float = 1_000_000.0
    global_stretch: float = 1.0

    def __post_init__(self):
        require_counts(self, MOST_TOKENS, "vocabulary", "window")
        require_counts(self, LARGEST_SIZE, "width", "mlp_width", "heads", "kv_heads", "head_size")
        for field in ("query_scale", "local_theta", "global_theta", "global_stretch"):
            require(getattr(self, field) > 0, field, getattr(self, field), "must be positive")
        require(self.heads % self.kv_heads == 0, "heads", self.heads, f"must be a multiple of kv_heads={self.kv_heads}")
        require(self.head_size % 2 == 0, "head_size", self.head_size, "must be even, rotation pairs channels")
        require(len(self.is_global) >= 1, "is_global", self.is_global, "must have an entry for each layer")
        require_counts(self, MOST_LAYERS, "layers")

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return len(self.is_global)

    @property
    def states(self) -> int:
        """Z, the hidden states per token: the embedding, and one for each layer."""
        return 1 + self.layers


def every_sixth(layers: int) -> tuple[bool, ...]:
    """Return Gemma's pattern: five sliding layers, then a global one."""
    return tuple(i % 6 == 5 for i in range(layers))


GEMMA_3_12B = GemmaConfig(
    vocabulary=262_208,
    width=3840,
    mlp_width=15_360,
    heads=16,
    kv_heads=8,
    head_size=256,
    query_scale=256.0,
    window=1024,
    is_global=every_sixth(48),
    global_stretch=8.0,
)


@struct.dataclass
class GemmaLayer:
    """One layer; norm weights are offsets from 1, as on disk."""

    before_attn_norm: Leaf  # [D]
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Leaf  # [H]
    k_norm: Leaf  # [H]
    after_attn_norm: Leaf  # [D]
    before_mlp_norm: Leaf  # [D]
    gate: Linear
    up: Linear
    down: Linear
    after_mlp_norm: Leaf  # [D]


@struct.dataclass
class Gemma:
    """All weights of a text model."""

    embedding: Leaf  # [V, D]
    layers: GemmaLayer  # every leaf [L, ...]
    norm: Leaf  # [D]


@struct.dataclass
class _Kind:
    """Rotation and mask of one kind of layer; for both kinds, every leaf has a leading axis (sliding, global)."""

    rotary: Rotary
    bias: ArrayLeaf  # [B, 1, X, X]


def gemma_spec(config: GemmaConfig) -> Gemma:
    """Declare the weights of a text model."""
    return Gemma(
        embedding=Spec((config.vocabulary, config.width), ("vocabulary", "embed"), normal(config.width**-0.5)),
        layers=stacked(_layer_spec(config), config.layers),
        norm=Spec((config.width,), (None,), zeros),
    )


def _layer_spec(config: GemmaConfig) -> GemmaLayer:
    width, queries, keys = config.width, config.heads * config.head_size, config.kv_heads * config.head_size

    def norm(size: int) -> Spec:
        return Spec((size,), (None,), zeros)

    return GemmaLayer(
        before_attn_norm=norm(width),
        q=linear_spec(width, queries, ("heads", "embed"), bias=False),
        k=linear_spec(width, keys, ("heads", "embed"), bias=False),
        v=linear_spec(width, keys, ("heads", "embed"), bias=False),
        o=linear_spec(queries, width, ("embed", "heads"), bias=False),
        q_norm=norm(config.head_size),
        k_norm=norm(config.head_size),
        after_attn_norm=norm(width),
        before_mlp_norm=norm(width),
        gate=linear_spec(width, config.mlp_width, ("mlp", "embed"), bias=False),
        up=linear_spec(width, config.mlp_width, ("mlp", "embed"), bias=False),
        down=linear_spec(config.mlp_width, width, ("embed", "mlp"), bias=False),
        after_mlp_norm=norm(width),
    )


def embed(params: Gemma, ids: Int[Array, "B X"], dtype: DTypeLike = jnp.float32) -> Float[Array, "B X D"]:
    """Look tokens up and multiply by sqrt(D).

    The factor is rounded to `dtype` as in the reference: LTX-2 was trained with 62, sqrt(3840) in bfloat16.
    """
    rows = array(params.embedding)[ids].astype(dtype)
    return rows * jnp.asarray(math.sqrt(rows.shape[-1]), dtype)


def hidden_states(
    config: GemmaConfig,
    params: Gemma,
    ids: Int[Array, "B X"],
    mask: Int[Array, "B X"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "Z B X D"]:
    """Return the Z = L + 1 hidden states of every token.

    State 0 is the output of `embed` and state i the output of layer i. The last one has passed the final norm.

    Args:
        config: The model's config.
        params: Its weights, in any floating type.
        ids: Token ids.
        mask: 1 = a token, 0 = padding, on either side. The states of padding are meaningless.
        dtype: Type to compute in; norms, rotations and softmax are float32.
    """
    x = embed(params, ids, dtype)
    kinds = _kinds(config, mask != 0)

    def body(x: Array, layer: tuple[GemmaLayer, Array]) -> tuple[Array, Array]:
        p, is_global = layer
        kind = jax.tree.map(lambda pair: jax.lax.dynamic_index_in_dim(pair, is_global, 0, keepdims=False), kinds)
        x = _layer(config, p, x, kind)
        return x, x

    _, after = jax.lax.scan(body, x, (params.layers, jnp.array(config.is_global, jnp.int32)))
    return jnp.concatenate([x[None], after[:-1], _norm(after[-1:], params.norm)])


def _kinds(config: GemmaConfig, is_token: Bool[Array, "B X"]) -> _Kind:
    """Make rotations and masks of sliding and global layers, stacked in this order."""
    positions = np.arange(is_token.shape[1])
    distance = positions[:, None] - positions[None, :]
    seen = np.stack([(distance >= 0) & (distance < config.window), distance >= 0])
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    grids = [config.local_theta**-exponents, config.global_theta**-exponents / config.global_stretch]
    angle = (positions[:, None] * np.stack(grids)[:, None, :])[:, None, :, None, :]
    cos, sin = (jnp.asarray(f(angle), jnp.float32) for f in (np.cos, np.sin))
    bias = mask_bias(jnp.asarray(seen)[:, None, None] & is_token[None, :, None, None, :])
    return _Kind(rotary=Rotary(cos=cos, sin=sin, kind=RotaryKind.SPLIT), bias=bias)


def _layer(config: GemmaConfig, p: GemmaLayer, x: Float[Array, "B X D"], kind: _Kind) -> Float[Array, "B X D"]:
    x = x + _norm(_attend(config, p, _norm(x, p.before_attn_norm), kind), p.after_attn_norm)
    y = _norm(x, p.before_mlp_norm)
    y = project(p.down, jax.nn.gelu(project(p.gate, y), approximate=True) * project(p.up, y))
    return x + _norm(y, p.after_mlp_norm)


def _attend(config: GemmaConfig, p: GemmaLayer, x: Float[Array, "B X D"], kind: _Kind) -> Float[Array, "B X D"]:
    q, k, v = (project(linear, x).reshape(*x.shape[:2], -1, config.head_size) for linear in (p.q, p.k, p.v))
    q, k = rotate(_norm(q, p.q_norm), kind.rotary), rotate(_norm(k, p.k_norm), kind.rotary)
    q = q * jnp.asarray(math.sqrt(config.head_size / config.query_scale), q.dtype)  # the kernel divides by sqrt(H)
    k, v = (jnp.repeat(y, config.heads // config.kv_heads, axis=2) for y in (k, v))
    y = dot_product_attention(q, [KVSegment(k, v, kind.bias)])
    return project(p.o, y.reshape(*y.shape[:2], -1))


def _norm(x: Float[Array, "*batch D"], weight: Leaf) -> Float[Array, "*batch D"]:
    return rms_norm(x, 1 + array(weight).astype(jnp.float32))
