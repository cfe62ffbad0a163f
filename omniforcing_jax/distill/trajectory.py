"""A teacher's guided trajectories from noise to clips: what ODE pairs are made of.

Source: OmniForcing v2 stage 2, specs/omniforcing.md 7.3.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.guidance import GuidanceConfig, euler_trajectory, guided_x0
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.model.whole_clip import predict_x0
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts


def draw_noise(seeds: Int[Array, " B"], model: ModelConfig, tokens: tuple[int, int]) -> Streams:
    """Draw the noise that trajectories begin with, each from its seed alone.

    Args:
      seeds: one per trajectory.
      model: the teacher.
      tokens: T and A, tokens of video and audio.
    """

    def draw(seed: Array) -> Streams:
        for_video, for_audio = jax.random.split(jax.random.key(seed))
        return Streams(
            jax.random.normal(for_video, (tokens[0], model.video.latent_channels), jnp.float32),
            jax.random.normal(for_audio, (tokens[1], model.audio.latent_channels), jnp.float32),
        )

    return jax.vmap(draw)(seeds)


def guided_entries(
    params: Transformer,
    model: ModelConfig,
    noise: Streams,
    prompt: TextContexts,
    negative: TextContexts,
    sigmas: Float[Array, " K"],
    indices: Sequence[int],
    config: GuidanceConfig,
    rotaries: Rotaries,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Streams:
    """Follow guided Euler steps from noise to clips and keep some of what lies between.

    Args:
      params: the teacher's.
      model: what network it is.
      noise: where trajectories begin, [B, T, C] and [B, A, C].
      prompt: what they show.
      negative: what guidance pushes away from, a row for each.
      sigmas: all noise levels, from 1 to 0.
      indices: E of them, whose entries are kept.
      config: strengths of guidance.
      rotaries: rotations of the whole clip.
      dtype: type to compute in; entries are float32.

    Returns:
      Entries, [E, B, T, C] and [E, B, A, C].
    """

    def ask(noisy: Streams, sigma: Array, contexts: TextContexts, perturbation: Perturbation) -> Streams:
        return predict_x0(params, model, noisy, sigma, contexts, rotaries, perturbation, dtype=dtype)

    predict = partial(guided_x0, ask, prompt=prompt, negative=negative, config=config, layers=model.layers)
    entries = euler_trajectory(predict, noise, sigmas)
    return jax.tree.map(lambda x: x[jnp.asarray(indices)], entries)
