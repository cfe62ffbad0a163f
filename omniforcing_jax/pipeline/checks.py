"""Checks of a request before any work is done for it, shared by the stream and the clip.

Every refusal is a ValueError of one line that names the culprit.
"""

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from omniforcing_jax.codecs.upsampler_config import UpsamplerConfig
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, without_upsampler
from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config
from omniforcing_jax.strict_json import require, shorten

DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SEED = 2**32 - 1
FAR = 2.0  # times the trained area, or the trained ratio of width to height
LONGEST_SIDE = 16_384  # pixels of a picture's side: twice an 8K picture

log = logging.getLogger(__name__)

Weights = AnyPath | Pipeline
"""A weights folder, the name of shipped weights ("chime", "chime-teacher"), or a loaded pipeline."""


def pipeline_config(weights: Weights, *, upsampler: bool = False) -> PipelineConfig:
    """Return the configs of a weights folder, which are read, or of a loaded pipeline.

    Args:
        weights: The weights.
        upsampler: Whether the upsampler of the picture is needed. Without it the configs have none.

    Raises:
        ValueError: The weights have no upsampler and need one; or as `read_pipeline_config`.
    """
    if upsampler:
        return with_upsampler(weights)[0]
    return without_upsampler(weights).config if isinstance(weights, Pipeline) else read_pipeline_config(weights)


def with_upsampler(weights: Weights) -> tuple[PipelineConfig, UpsamplerConfig]:
    """Return the configs of weights whose upsampler of the picture is needed, and its own.

    Raises:
        ValueError: They have none.
    """
    config = weights.config if isinstance(weights, Pipeline) else read_pipeline_config(weights, upsampler=True)
    if config.upsampler is None:
        raise ValueError(f"{config.name!r} was loaded without its upsampler; give load_pipeline(..., upsampler=True)")
    return config, config.upsampler


def load(weights: Weights, config: PipelineConfig, dtype: DTypeLike) -> Pipeline:
    """Load a weights folder. A pipeline that is loaded already is returned, without an upsampler that is not needed."""
    if isinstance(weights, Pipeline):
        return weights if config.upsampler is not None else without_upsampler(weights)
    return load_pipeline(weights, config, dtype)


def student_sampler(config: PipelineConfig) -> SamplerConfig:
    """Return the sampling config of a causal student.

    Raises:
        ValueError: If the weights are a bidirectional teacher.
    """
    if config.sampler is None:
        raise ValueError(
            f"{config.name!r} is a bidirectional teacher (its config has no sampler section), which cannot stream: "
            "use the command `sample`"
        )
    return config.sampler


def refuse_student(config: PipelineConfig) -> None:
    """Refuse weights that are a causal student.

    Raises:
        ValueError: If the weights are a causal student.
    """
    if config.sampler is not None:
        raise ValueError(
            f"{config.name!r} is a causal student (its config has a sampler section), which has no whole-clip form: "
            "use the command `stream`"
        )


def check_dtype(dtype: DTypeLike, field: str = "dtype") -> np.dtype:
    """Return a type to compute or load in.

    Raises:
        ValueError: If it is none of `DTYPES`; names the field.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"{field}={shorten(dtype)}: must be one of {', '.join(DTYPES)}")
    return found


def check_seed(*seeds: int) -> None:
    """Refuse seeds that would give the noise of other seeds.

    Raises:
        ValueError: If a seed has more than 32 bits, of which JAX would drop the upper ones, or is negative.
    """
    for seed in seeds:
        fits = isinstance(seed, int | np.integer) and 0 <= seed <= LARGEST_SEED
        require(fits, "seed", seed, f"must be a whole number from 0 to {LARGEST_SEED}")


def check_side(config: PipelineConfig, height: int | None, width: int | None) -> tuple[int, int]:
    """Return latent rows and columns of a requested picture; None is the size that the weights were trained at.

    Raises:
        ValueError: If a side is no positive multiple of the codec's compression, or beyond `LONGEST_SIDE`.
    """
    sides = [own if side is None else side for side, own in zip((height, width), config.resolution, strict=True)]
    for name, side in zip(("height", "width"), sides, strict=True):
        require(side <= LONGEST_SIDE, name, side, f"must be at most {LONGEST_SIDE} pixels")
    grid = config.grid(*sides)
    (height, width), (own_height, own_width) = sides, config.resolution
    times = height * width / (own_height * own_width), width * own_height / (height * own_width)
    if not all(1 / FAR <= each <= FAR for each in times):
        size, own = f"{width}x{height}", f"{own_width}x{own_height}"
        log.warning(
            "%s pixels: %r was trained at %s; nothing is known of pictures this far off", size, config.name, own
        )
    return grid


def check_mesh(config: PipelineConfig) -> None:
    """Refuse weights that the active mesh cannot shard.

    Raises:
        ValueError: If a dimension of the network is not divisible; names it.
    """
    mesh = meshes.mesh_that_is_set()
    if mesh is not None:
        meshes.config_of(mesh).check_network(config.model)


def adjust_sampler(sampler: SamplerConfig, window: int | None, steps: int | None) -> SamplerConfig:
    """Apply the window and the number of denoise steps of a request; None keeps those of the weights.

    A student knows only the noise levels that it was trained on. Fewer steps therefore keep the first sigma and thin
    out the others evenly.

    Raises:
        ValueError: If the window is longer than the horizon, or if there are more steps than trained ones.
    """
    if window is not None:
        sampler = dataclasses.replace(sampler, window=window)
    if steps is not None:
        require(1 <= steps <= sampler.steps, "steps", steps, f"must be between 1 and {sampler.steps}, the trained ones")
        kept = np.round(np.arange(steps) * sampler.steps / steps).astype(int)
        sampler = dataclasses.replace(sampler, sigmas=(*(sampler.sigmas[i] for i in kept), 0.0))
    return sampler
