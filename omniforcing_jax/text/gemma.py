"""Gemma 3 and Gemma 4 as text encoders: token ids to the hidden states of every layer.

Layers are stacked and scanned. A layer slides (it sees `window` tokens and uses the local rotation) or is global. In
Gemma 3 both kinds have the same shapes and share a stack; in Gemma 4 global layers have a stack of their own. What only
Gemma 4 has is None in Gemma 3's tree. Towers for pictures and sounds and the language head are not here.

Source: transformers@5.23.0:models/gemma3/modeling_gemma3.py;
transformers@5.23.0:models/gemma4_unified/modeling_gemma4_unified.py; the technical report of Gemma 3 (arXiv
2503.19786), sec. 2.
"""

import functools
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
from omniforcing_jax.parallel.spec import ArrayLeaf, Leaf, Spec, array, normal, ones, stacked, zeros
from omniforcing_jax.text.gemma_config import GemmaConfig, GlobalHeads


@struct.dataclass
class GemmaLayer:
    """One layer; the config's `norm_offset` is added to norm weights, which are as on disk."""

    before_attn_norm: Leaf  # [D]
    q: Linear
    k: Linear
    v: Linear | None  # None: the keys, before their norm, are the values
    o: Linear
    q_norm: Leaf  # [H]
    k_norm: Leaf  # [H]
    after_attn_norm: Leaf  # [D]
    before_mlp_norm: Leaf  # [D]
    gate: Linear
    up: Linear
    down: Linear
    after_mlp_norm: Leaf  # [D]
    scale: Leaf  # [1], or None


@struct.dataclass
class Gemma:
    """All weights of a text model."""

    embedding: Leaf  # [V, D]
    layers: GemmaLayer  # every leaf [L, ...], or of sliding layers alone
    global_layers: GemmaLayer | None  # every leaf [L, ...] of global layers, where they have heads of their own
    norm: Leaf  # [D]


@struct.dataclass
class _Kind:
    """Rotation and mask of one kind of layer."""

    rotary: Rotary
    bias: ArrayLeaf  # [B, 1, X, X]


def gemma_spec(config: GemmaConfig) -> Gemma:
    """Declare the weights of a text model."""
    of_sliding = GlobalHeads(kv_heads=config.kv_heads, head_size=config.head_size)
    stacks = [
        stacked(_layer_spec(config, heads), len(numbers))
        for heads, numbers in zip((of_sliding, config.of_global), config.stacks, strict=False)
    ]
    return Gemma(
        embedding=Spec((config.vocabulary, config.width), ("vocabulary", "embed"), normal(config.width**-0.5)),
        layers=stacks[0],
        global_layers=stacks[1] if len(stacks) > 1 else None,
        norm=_norm_spec(config, config.width),
    )


def _norm_spec(config: GemmaConfig, size: int) -> Spec:
    return Spec((size,), (None,), ones if config.norm_offset == 0 else zeros)


def _layer_spec(config: GemmaConfig, of: GlobalHeads) -> GemmaLayer:
    """Declare one layer, with the heads of its kind."""
    width, queries, keys = config.width, config.heads * of.head_size, of.kv_heads * of.head_size
    norm = functools.partial(_norm_spec, config)
    return GemmaLayer(
        before_attn_norm=norm(width),
        q=linear_spec(width, queries, ("heads", "embed"), bias=False),
        k=linear_spec(width, keys, ("heads", "embed"), bias=False),
        v=None if of.keys_are_values else linear_spec(width, keys, ("heads", "embed"), bias=False),
        o=linear_spec(queries, width, ("embed", "heads"), bias=False),
        q_norm=norm(of.head_size),
        k_norm=norm(of.head_size),
        after_attn_norm=norm(width),
        before_mlp_norm=norm(width),
        gate=linear_spec(width, config.mlp_width, ("mlp", "embed"), bias=False),
        up=linear_spec(width, config.mlp_width, ("mlp", "embed"), bias=False),
        down=linear_spec(config.mlp_width, width, ("embed", "mlp"), bias=False),
        after_mlp_norm=norm(width),
        scale=Spec((1,), (None,), ones) if config.layer_scale else None,
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
    stacks = (params.layers, params.layers if params.global_layers is None else params.global_layers)
    branches = [
        functools.partial(_layer_of, config, stack, kind)
        for stack, kind in zip(stacks, _kinds(config, mask != 0), strict=True)
    ]

    def body(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        is_global, row = at
        x = jax.lax.switch(is_global, branches, x, row)
        return x, x

    row_of = {number: row for numbers in config.stacks for row, number in enumerate(numbers)}
    is_global = jnp.array(config.is_global, jnp.int32)
    rows = jnp.array([row_of[i] for i in range(config.layers)], jnp.int32)
    _, after = jax.lax.scan(body, x, (is_global, rows))
    return jnp.concatenate([x[None], after[:-1], _norm(config, after[-1:], params.norm)])


def _kinds(config: GemmaConfig, is_token: Bool[Array, "B X"]) -> tuple[_Kind, _Kind]:
    """Make rotations and masks of sliding and of global layers."""
    positions = np.arange(is_token.shape[1])
    distance = positions[:, None] - positions[None, :]
    of_global = head_frequencies(config.of_global.head_size, config.global_theta, config.global_rotated)

    def kind(grid: np.ndarray, reach: int) -> _Kind:
        seen = jnp.asarray((distance >= 0) & (distance < reach))[None, None] & is_token[:, None, None, :]
        return _Kind(rotary=_rotary(positions, grid), bias=mask_bias(seen))

    return (
        kind(head_frequencies(config.head_size, config.local_theta, 1.0), config.window),
        kind(of_global / config.global_stretch, len(positions)),
    )


def head_frequencies(size: int, theta: float, rotated: float) -> Float[np.ndarray, " W"]:
    """Return the frequencies of the pairs of a head's channels; those of pairs that are not rotated are 0.

    The exponents are fractions of the whole head, however few channels are rotated ("proportional").
    """
    pairs = np.arange(size // 2)
    return np.where(pairs < int(rotated * size // 2), theta ** -(2 * pairs / size), 0.0)


def _rotary(positions: Int[np.ndarray, " X"], grid: Float[np.ndarray, " W"]) -> Rotary:
    angle = (positions[:, None] * grid)[None, :, None, :]
    cos, sin = (jnp.asarray(f(angle), jnp.float32) for f in (np.cos, np.sin))
    return Rotary(cos=cos, sin=sin, kind=RotaryKind.SPLIT)


def _layer_of(
    config: GemmaConfig, stack: GemmaLayer, kind: _Kind, x: Float[Array, "B X D"], row: Int[Array, ""]
) -> Float[Array, "B X D"]:
    """Run one layer of a stack."""
    p = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, row, 0, keepdims=False), stack)
    return _layer(config, p, x, kind)


def _layer(config: GemmaConfig, p: GemmaLayer, x: Float[Array, "B X D"], kind: _Kind) -> Float[Array, "B X D"]:
    x = x + _norm(config, _attend(config, p, _norm(config, x, p.before_attn_norm), kind), p.after_attn_norm)
    y = _norm(config, x, p.before_mlp_norm)
    y = project(p.down, jax.nn.gelu(project(p.gate, y), approximate=True) * project(p.up, y))
    x = x + _norm(config, y, p.after_mlp_norm)
    return x if p.scale is None else x * array(p.scale)[0].astype(x.dtype)


def _attend(config: GemmaConfig, p: GemmaLayer, x: Float[Array, "B X D"], kind: _Kind) -> Float[Array, "B X D"]:
    size = array(p.q_norm).shape[0]
    q, k = (project(linear, x).reshape(*x.shape[:2], -1, size) for linear in (p.q, p.k))
    v = k if p.v is None else project(p.v, x).reshape(k.shape)
    v = rms_norm(v) if config.value_norm else v
    q, k = (rotate(_norm(config, y, weight), kind.rotary) for y, weight in ((q, p.q_norm), (k, p.k_norm)))
    q = q * jnp.asarray(math.sqrt(size / config.query_scale), q.dtype)  # the kernel divides by sqrt(H)
    k, v = (jnp.repeat(y, q.shape[2] // k.shape[2], axis=2) for y in (k, v))
    y = dot_product_attention(q, [KVSegment(k, v, kind.bias)])
    return project(p.o, y.reshape(*y.shape[:2], -1))


def _norm(config: GemmaConfig, x: Float[Array, "*batch D"], weight: Leaf) -> Float[Array, "*batch D"]:
    return rms_norm(x, config.norm_offset + array(weight).astype(jnp.float32))
