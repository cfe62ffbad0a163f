"""Entries that chime's student learns from: of rendered clips or of the teacher, and pasts of another prompt."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.world import recipe
from omniforcing_jax.distill.flow import noise_like
from omniforcing_jax.distill.ode import Trajectory
from omniforcing_jax.layout import PREFIX, block_of_frames
from omniforcing_jax.streams import Streams

BLOCKS = PREFIX.blocks(1 + 3 * recipe.SECONDS)


def change_pasts(trajectory: Trajectory, key: jax.Array, share: float) -> Trajectory:
    """Give a share of the samples the past of their neighbour in the batch, at every entry; it is not learned.

    Returns:
        The trajectory, whose `since` is the first block of each sample that is its own.
    """
    for_choice, for_border = jax.random.split(key)
    count = trajectory.video.shape[1]
    border = jax.random.randint(for_border, (count,), 1, len(BLOCKS))
    since = jnp.where(jax.random.uniform(for_choice, (count,)) < share, border, 0)

    def join(own: jax.Array, block_of_frame: np.ndarray) -> jax.Array:
        block_of_token = np.repeat(block_of_frame, own.shape[2] // len(block_of_frame))
        is_own = block_of_token[None] >= since[:, None]
        return jnp.where(is_own[None, :, :, None], own, jnp.roll(own, 1, axis=1))

    frames_v, frames_a = block_of_frames(BLOCKS)
    video, audio = join(trajectory.video, frames_v), join(trajectory.audio, frames_a)
    return Trajectory(video=video, audio=audio, sigmas=trajectory.sigmas, since=since)


def straight(batch: dict[str, Any], sigmas: jax.Array, key: jax.Array) -> Trajectory:
    """Lines from real clips to fresh noise, at the student's levels."""
    clip = Streams(*(x.astype(jnp.float32) for x in recipe.cut(batch, recipe.SECONDS)))
    noise = noise_like([jax.random.fold_in(key, i) for i in range(2)], clip)
    level = sigmas[:, None, None, None]
    line = jax.tree.map(lambda x, n: (1 - level) * x[None] + level * n[None], clip, noise)
    return Trajectory(video=line.video, audio=line.audio, sigmas=sigmas)


def recorded(batch: dict[str, Any], sigmas: jax.Array, key: jax.Array) -> Trajectory:
    """Trajectories of the teacher as they were written."""
    video, audio = (batch[name].astype(jnp.float32).swapaxes(0, 1) for name in ("video", "audio"))
    return Trajectory(video=video, audio=audio, sigmas=sigmas)
