"""Random, non-trivial values for any tree of shapes, made by NumPy: nothing is compiled for them."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io.weights import name_leaves


def fill(shapes, seed: int = 0):
    """Draw every leaf, also biases, norms, tables and statistics; a leaf depends on seed and its own path only."""

    def draw(name: str, leaf) -> jax.Array:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = rng.normal(size=leaf.shape)
        last = name.rpartition("/")[2]
        if last.endswith(("norm", "std")):
            value = 1 + 0.25 * np.tanh(noise)
        elif last == "w":
            value = noise / math.sqrt(leaf.shape[-1])
        elif last == "kernel":
            value = noise / math.sqrt(math.prod(leaf.shape[:-1]))
        else:
            value = 0.15 * noise
        return jnp.asarray(value.astype(leaf.dtype))

    named = name_leaves(shapes)
    return jax.tree.unflatten(jax.tree.structure(shapes), [draw(name, leaf) for name, leaf in named.items()])
