"""Softmax attention over keys in parts: the plain form, which everything else is held against.

Past and fresh keys are never concatenated here: their scores share one softmax (its maximum and its sum run over all
parts), so a cache is read where it lies. The kernels that do the same are in splash.py and cudnn.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from omniforcing_jax.nn.mask import HIDDEN


class KVSegment(NamedTuple):
    """Some of the keys that one softmax runs over.

    Attributes:
      k, v: keys and values.
      bias: added to the scores. Where it has one row for all heads and queries it is a mask: 0 or HIDDEN.
      prefix: whether the keys that such a mask shows come first.
    """

    k: Float[Array, "B S N H"]
    v: Float[Array, "B S N H"]
    bias: Float[Array, "b n t S"] | None = None
    prefix: bool = False

    @property
    def differs_by_query(self) -> bool:
        """Whether it hides keys from some heads or queries and shows them to others."""
        return self.bias is not None and self.bias.shape[1:3] != (1, 1)

    @property
    def seen(self) -> Bool[Array, "B S"]:
        """Which keys a mask shows; all of them where there is none. Not of a bias that differs by query."""
        if self.bias is None:
            return jnp.ones(self.k.shape[:2], bool)
        return jnp.broadcast_to(self.bias[:, 0, 0] > HIDDEN / 2, self.k.shape[:2])


def concat_keys(arrays: Sequence[Array]) -> Array:
    """Concatenate what belongs to the keys of several parts, [B, S, ...] each."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=1)


def plain_attention(q: Float[Array, "B T N H"], parts: Sequence[KVSegment]) -> Float[Array, "B T N H"]:
    """Softmax attention over the union of the parts' keys; scores and sums in float32, returned in q's type."""
    scores = [_scores(q, part) for part in parts]
    tops = [jnp.max(score, axis=-1, keepdims=True) for score in scores]
    top = jax.lax.stop_gradient(tops[0] if len(tops) == 1 else jnp.max(jnp.stack(tops), axis=0))
    weights = [jnp.exp(score - top) for score in scores]
    total = sum(jnp.sum(weight, axis=-1) for weight in weights)
    mixed = sum(
        jnp.einsum("bnts,bsnh->btnh", weight.astype(part.v.dtype), part.v, preferred_element_type=jnp.float32)
        for weight, part in zip(weights, parts, strict=True)
    )
    return (mixed / jnp.swapaxes(total, 1, 2)[..., None]).astype(q.dtype)


def _scores(q: Float[Array, "B T N H"], part: KVSegment) -> Float[Array, "B N T S"]:
    scores = jnp.einsum("btnh,bsnh->bnts", q, part.k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    return scores if part.bias is None else scores + part.bias
