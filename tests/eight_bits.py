"""Networks in eight bits, made of wide ones: as the package makes them, and spelled out wide again as the oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.config import EightBitKind, EightBits
from omniforcing_jax.model.eight_bits import ALL_PARTS
from omniforcing_jax.nn.quantised import Quantised, encode, measure_scale
from omniforcing_jax.nn.stack import MixedStack, is_mixed
from omniforcing_jax.parallel.spec import path_name


def choose(config, kind, layers, parts=ALL_PARTS):
    """The config of a network with these layers in eight bits."""
    return dataclasses.replace(config, eight_bits=EightBits(kind=EightBitKind(kind), layers=layers, parts=parts))


def quantise(w, kind):
    """One matrix, or a stack of them."""
    w, kind = np.asarray(w), EightBitKind(kind)
    scale = measure_scale(w, kind)
    values = encode(w.reshape(-1, w.shape[-1]), scale.reshape(-1), kind).reshape(w.shape)
    return Quantised(values=jnp.asarray(values), scale=jnp.asarray(scale))


def quantise_network(params, eight_bits):
    """The network's matrices in eight bits, as its config says."""
    kept = [i for i in range(len(params.layers.video.table)) if i not in eight_bits.layers]

    def one(path, w):
        if path_name(path).removesuffix("/w") not in eight_bits.parts:
            return w
        narrow = quantise(w[np.array(eight_bits.layers)], eight_bits.kind)
        return MixedStack(narrow=narrow, wide=w[np.array(kept)] if kept else None, layers=eight_bits.layers)

    return dataclasses.replace(params, layers=jax.tree_util.tree_map_with_path(one, params.layers))


def widen_network(params):
    """The matrices that eight bits stand for, in float32, stacked in the order of the layers."""

    def one(leaf):
        if not is_mixed(leaf):
            return leaf
        wide = np.zeros((len(leaf.layers) + len(() if leaf.wide is None else leaf.wide), *leaf.narrow.shape[1:]))
        kept = [i for i in range(len(wide)) if i not in leaf.layers]
        wide[list(leaf.layers)] = np.float32(leaf.narrow.values) * np.asarray(leaf.narrow.scale)[..., None]
        if kept:
            wide[kept] = leaf.wide
        return jnp.asarray(wide, jnp.float32)

    return dataclasses.replace(params, layers=jax.tree.map(one, params.layers, is_leaf=is_mixed))
