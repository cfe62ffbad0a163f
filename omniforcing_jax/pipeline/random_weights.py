"""Random weights for a whole pipeline, for measurements without a weights folder."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.nn.quantised import BY_DTYPE, Quantised, even_scale, is_quantised
from omniforcing_jax.parallel.spec import path_name
from omniforcing_jax.pipeline.pipeline import (
    Pipeline,
    PipelineConfig,
    abstract_pipeline,
    cut_rows,
    has_list,
    with_list,
)

SMALL_STD = 0.02  # standard deviation of random biases and tables


def random_pipeline(config: PipelineConfig, seed: int, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Draw weights for measurements.

    They are drawn on the device and leaf by leaf, so that a large network is never in memory twice. Matrices and
    kernels keep the scale of their inputs, norms and standard deviations are about 1, and the rest is small. Eight bits
    are drawn as such. Trainings start from their own initial values, not from these.
    """
    named, tree = jax.tree_util.tree_flatten_with_path(abstract_pipeline(config, dtype), is_leaf=is_quantised)
    # These random numbers are neither good nor portable, but their programs, one per shape, compile three times faster.
    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), len(named))
    drawn = []
    for (path, leaf), k in zip(named, keys, strict=True):
        value = _draw_leaf(k, path_name(path), leaf)
        cut = partial(cut_rows, path_name(path).removeprefix("transformer/"))
        drawn.append(jax.tree.map(cut, value) if has_list(config) else value)
    pipeline = tree.unflatten(drawn)
    return dataclasses.replace(pipeline, transformer=with_list(config, pipeline.transformer))


def _draw_leaf(key: Array, name: str, leaf: Any) -> Any:
    if not is_quantised(leaf):
        return _draw(key, *map(jnp.float32, _moments(name, leaf.shape)), leaf.shape, leaf.dtype)
    eights, shape = BY_DTYPE[np.dtype(leaf.values.dtype)], leaf.values.shape
    even = jnp.float32(eights.largest / math.sqrt(3))
    return Quantised(
        values=_draw(key, jnp.float32(0), even, shape, leaf.values.dtype),
        scale=jnp.full(shape[:-1], even_scale(eights, shape[-1]), leaf.scale.dtype),
    )


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
