"""Random weights for a whole pipeline, for measurements without a weights folder."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.io import weights
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, abstract_pipeline

SMALL_STD = 0.02  # standard deviation of random biases and tables


def random_pipeline(config: PipelineConfig, seed: int, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Draw weights for measurements.

    They are drawn on the device and leaf by leaf, so that a large network is never in memory twice. Matrices and
    kernels keep the scale of their inputs, norms and standard deviations are about 1, and the rest is small. Trainings
    start from their own initial values, not from these.
    """
    shapes = abstract_pipeline(config, dtype)
    leaves, tree = jax.tree.flatten(shapes)
    names = list(weights.name_leaves(shapes))
    # These random numbers are neither good nor portable, but their programs, one per shape, compile three times faster.
    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), len(leaves))
    drawn = [
        _draw(k, *map(jnp.float32, _moments(name, x.shape)), x.shape, x.dtype)
        for name, x, k in zip(names, leaves, keys, strict=True)
    ]
    return tree.unflatten(drawn)


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Choose mean and standard deviation of a random leaf by its name."""
    last = name.rpartition("/")[2]
    if last.endswith(("norm", "std")):
        return 1.0, 0.1
    inputs = {"w": shape[-1:], "kernel": shape[:-1]}.get(last)
    return 0.0, SMALL_STD if inputs is None else 1 / math.sqrt(math.prod(inputs))


@partial(jax.jit, static_argnums=(3, 4))
def _draw(key: Array, mean: Float[Array, ""], std: Float[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    spread = math.sqrt(3) * std
    return jax.random.uniform(key, shape, jnp.float32, mean - spread, mean + spread).astype(dtype)
