"""Camera attention: video tokens attend with keys, values and results seen through the cameras of their latent frames.

A camera is a 4 x 4 matrix P of each latent frame. With the query's frame q and the key's frame k,

    query' = P_q^T query,   key' = P_k^-1 key,   value' = P_k^-1 value,   result' = P_q result

on groups of four channels of the first half of each head, so scores and results depend on P_q P_k^-1 alone: on how one
camera stands to the other. The rest of the head is rotated by column and by row of the picture, values and results too.

Source: UCPE as in JoyAI-Echo's EchoWM; the matrices are PRoPE's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.config import CameraConfig, RotaryKind
from omniforcing_jax.nn.attention import KV, Past, masked_attention, past_segments, put
from omniforcing_jax.nn.kernels import dot_product_attention
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.mask import AttentionMask
from omniforcing_jax.nn.rope import Rotary, rotate, rotate_back
from omniforcing_jax.parallel.spec import ArrayLeaf

Matrices = ArrayLeaf | np.ndarray  # a host's until a program runs
GROUP = 4  # channels that a camera's matrix multiplies


@struct.dataclass
class CameraAttention:
    """Weights of one camera attention; only the projection of the result has a bias."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int = struct.field(pytree_node=False)


@struct.dataclass
class Cameras:
    """The cameras of a forward's latent frames and of the cached ones, [b, F, 4, 4] each, float32; b may be 1.

    Attributes:
        own: P of the forward's own frames.
        own_inverse: P^-1 of the same.
        ring: P^-1 of the frames in the ring of past blocks; None where nothing is cached there.
        pinned: P^-1 of the frames that are never evicted.
    """

    own: Matrices
    own_inverse: Matrices
    ring: Matrices | None = None
    pinned: Matrices | None = None


@struct.dataclass
class CameraSite:
    """Where camera attention happens: cameras, rotations of the tokens by column and row, and the mask."""

    cameras: Cameras
    columns: Rotary
    rows: Rotary
    mask: AttentionMask = AttentionMask()


def camera_attention_spec(width: int, config: CameraConfig) -> CameraAttention:
    """Declare camera attention beside a stream of some width."""
    inner = config.heads * config.head_size
    matrices = {name: linear_spec(width, inner, ("to_heads", None), bias=False) for name in "qkv"}
    return CameraAttention(**matrices, o=linear_spec(inner, width, ("embed", "heads")), heads=config.heads)


def camera_site(config: CameraConfig, cameras: Cameras | None, grid: tuple[int, int]) -> CameraSite | None:
    """Make the site of some cameras on a latent grid of (rows, columns), without a mask; None without cameras."""
    if cameras is None:
        return None
    pairs = config.head_size // 8
    places = np.indices(grid).reshape(2, -1)  # rows and columns of a frame's tokens
    angles = places[:, :, None] * config.theta ** (-np.arange(pairs) / pairs)
    rows, columns = (_rotary(each, cameras.own.shape[1]) for each in angles)
    return CameraSite(cameras=cameras, columns=columns, rows=rows)


def see_same_frames(site: CameraSite) -> CameraSite:
    """Let the cached keys be those of the forward's own frames, from another forward over them."""
    return dataclasses.replace(site, cameras=dataclasses.replace(site.cameras, ring=site.cameras.own_inverse))


def _rotary(angles: Float[np.ndarray, "P pairs"], frames: int) -> Rotary:
    """Rotate the tokens of every frame alike, and all heads."""
    tiled = np.tile(angles, (frames, 1))[None, :, None]
    return Rotary(jnp.asarray(np.cos(tiled), jnp.float32), jnp.asarray(np.sin(tiled), jnp.float32), RotaryKind.SPLIT)


def attend_through_cameras(
    p: CameraAttention, x: Float[Array, "B T D"], site: CameraSite, past: Past | None = None
) -> tuple[Float[Array, "B T D"], KV]:
    """Attend from tokens to themselves and to cached keys.

    Returns:
        The output, and the new keys and values: rotated by column and row, but not seen through cameras yet, because
        that needs another origin in every block. With a slot for them (`PastMask.slot`) they are in the ring.
    """
    q, k, v = (turn(project(each, x).reshape(*x.shape[:2], p.heads, -1), site) for each in (p.q, p.k, p.v))
    cameras, fresh = site.cameras, KV(k=k, v=v)
    q = multiply(q, jnp.swapaxes(cameras.own, -1, -2))
    if past is None or site.mask.past.slot is None:
        seen = None if past is None else _see_past(past, cameras)
        y, kept = masked_attention(q, _see(fresh, cameras.own_inverse), seen, site.mask), fresh
    else:
        assert isinstance(past.ring, KV), "a slot without a ring, or a ring in eight bits"
        kept = put(past.ring, fresh, site.mask.past.slot)
        seen = _see_past(dataclasses.replace(past, ring=kept), cameras)
        y = dot_product_attention(q, past_segments(seen, site.mask.past))
    y = turn_back(multiply(y, cameras.own), site)
    return project(p.o, y.reshape(*x.shape[:2], -1)), kept


def multiply(x: Float[Array, "B T N H"], matrices: Float[Array | np.ndarray, "b F 4 4"]) -> Float[Array, "B T N H"]:
    """Multiply groups of four channels, in the first half of each head, by the matrix of their frame.

    The matrix is repeated along a diagonal: one product with it suits matrix units, those of four channels do not. It
    is float32 throughout, returned in x's type.
    """
    batch, tokens, heads, size = x.shape
    matrices = jnp.asarray(matrices)
    half, frames = size // 2, matrices.shape[1]
    wide = x[..., :half].astype(jnp.float32).reshape(batch, frames, tokens // frames, heads, half)
    diagonal = jnp.einsum("gh,bfij->bfgihj", jnp.eye(half // GROUP), matrices).reshape(-1, frames, half, half)
    diagonal = jnp.broadcast_to(diagonal, (batch, *diagonal.shape[1:]))
    seen = jnp.einsum("bfpnj,bfij->bfpni", wide, diagonal, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([seen.reshape(batch, tokens, heads, half).astype(x.dtype), x[..., half:]], axis=-1)


def _see(kv: KV, inverse: Matrices) -> KV:
    return KV(k=multiply(kv.k, inverse), v=multiply(kv.v, inverse))


def _see_past(past: Past, cameras: Cameras) -> Past:
    return Past(_see_cached(past.ring, cameras.ring), _see_cached(past.pinned, cameras.pinned))


def _see_cached(kv: Any, inverse: Matrices | None) -> KV | None:
    if kv is None:
        return None
    assert isinstance(kv, KV), "keys seen through cameras stay wide"
    assert inverse is not None, "cached keys without cameras"
    return _see(kv, inverse)


def turn(x: Float[Array, "B T N H"], site: CameraSite) -> Float[Array, "B T N H"]:
    """Rotate by column and by row; angles have the opposite sign of those of the other attentions."""
    head, columns, rows = _parts(x)
    return jnp.concatenate([head, rotate_back(columns, site.columns), rotate_back(rows, site.rows)], axis=-1)


def turn_back(x: Float[Array, "B T N H"], site: CameraSite) -> Float[Array, "B T N H"]:
    """Undo `turn`."""
    head, columns, rows = _parts(x)
    return jnp.concatenate([head, rotate(columns, site.columns), rotate(rows, site.rows)], axis=-1)


def _parts(x: Float[Array, "B T N H"]) -> list[Float[Array, "B T N _"]]:
    """Cut heads into the half for cameras, and the quarters for columns and for rows."""
    size = x.shape[-1]
    return jnp.split(x, (size // 2, size // 4 * 3), axis=-1)
