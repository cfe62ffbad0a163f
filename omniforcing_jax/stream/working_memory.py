"""The memory that a stream needs besides its weights."""

from functools import partial

import jax
import jax.numpy as jnp

from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.pipeline import budget
from omniforcing_jax.pipeline.pipeline import PipelineConfig, abstract_pipeline, has_list
from omniforcing_jax.rollout import StaticConfig, make_cache
from omniforcing_jax.stream.decode import decode_video
from omniforcing_jax.stream.prompt_change.history import make_history


def working_bytes(
    config: PipelineConfig, static: StaticConfig, rows: int, history: int, lookahead: int
) -> dict[str, int]:
    """Count the bytes of a stream on each device, without its weights, by their use. Only shapes are computed.

    Args:
        config: The configs of the weights.
        static: Static config of the stream.
        rows: Rows of the batch.
        history: Later blocks whose latents are kept.
        lookahead: Latent frames by which the picture is delayed.
    """
    shapes = abstract_pipeline(config, static.dtype)
    cache = jax.eval_shape(lambda: make_cache(static, rows, has_list(config)))
    step = static.sampler.layout.step_v * static.grid[0] * static.grid[1]
    seen = step + lookahead * static.grid[0] * static.grid[1]
    tokens = jax.ShapeDtypeStruct((rows, seen, static.model.video.latent_channels), jnp.float32)
    pixels, carry = jax.eval_shape(
        partial(decode_video, carry=None, grid=static.grid, dtype=static.dtype, lookahead=lookahead),
        shapes.codecs,
        tokens,
    )
    kept = jax.eval_shape(lambda: make_history(static, rows, history))
    mesh = mesh_in_use()
    cut = 1 if mesh is None else mesh.shape["tensor"]
    return {
        "cache": budget.count_bytes(cache) // cut,
        "history": budget.count_bytes(kept),
        "decoder": budget.count_bytes((pixels, carry)),
        "attention": budget.score_bytes(config, rows, step, step + cache.video.total) // cut,
    }
