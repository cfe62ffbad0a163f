"""A teacher's trajectories from noise to clips: what ODE pairs are made of.

Source: OmniForcing (arXiv 2603.11647), stage 2; OmniForcing@50a271f:ltx_distillation/ode/generate_ode_pairs.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.guidance import euler_trajectory
from omniforcing_jax.streams import Streams


def noise_of_seeds(seeds: Int[Array, " B"], model: ModelConfig, tokens: tuple[int, int]) -> Streams:
    """Draw the noise that trajectories begin with, each from its seed alone.

    Args:
        seeds: One per trajectory.
        model: The teacher.
        tokens: T and A, tokens of video and audio.
    """

    def draw(seed: Array) -> Streams:
        for_video, for_audio = jax.random.split(jax.random.key(seed))
        return Streams(
            jax.random.normal(for_video, (tokens[0], model.video.latent_channels), jnp.float32),
            jax.random.normal(for_audio, (tokens[1], model.audio.latent_channels), jnp.float32),
        )

    return jax.vmap(draw)(seeds)


def trajectory_entries(
    predict: Callable[[Any, Array], Streams], noise: Streams, sigmas: Float[Array, " K"], indices: Sequence[int]
) -> Streams:
    """Take Euler steps from noise to clips and keep some of the entries.

    Args:
        predict: (noisy clip, noise level) -> clean clip, such as `ClipNetwork.guided_x0` of the teacher.
        noise: Where trajectories begin, [B, T, C] and [B, A, E].
        sigmas: All noise levels, from 1 to 0.
        indices: Which of them, n in all, are kept.

    Returns:
        The entries at these levels, [n, B, T, C] and [n, B, A, E], float32.
    """
    kept = jnp.asarray(indices)
    return jax.tree.map(lambda x: x[kept], Streams(*euler_trajectory(predict, noise, sigmas)))
