"""Random, non-trivial values for any tree of shapes, made by NumPy: nothing is compiled for them."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io.weights import name_leaves


def fill_codec(module, example, vectors: tuple[float, float]):
    """Draw every variable of a codec module: vectors (biases, statistics) from a range that is never neutral."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), example))
    generator = np.random.default_rng(0)
    drawn = [
        generator.uniform(*vectors, leaf.shape) if leaf.ndim == 1
        else generator.normal(size=leaf.shape) * math.prod(leaf.shape[:-1]) ** -0.5
        for leaf in leaves
    ]  # fmt: skip
    return jax.tree.unflatten(tree, [jnp.asarray(leaf, jnp.float32) for leaf in drawn])


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
