"""The regression on a teacher's trajectories: the loss of stage 2, and what is measured on pairs that are held out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from experiments.ltx2_flags import PairsArguments
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.generator_critic import contexts_of
from omniforcing_jax.distill.ode import OdeConfig, Prompts, Trajectory, ode_loss
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import Transformer, keep_projections
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.train import data
from omniforcing_jax.train.gradient import Loss, Metrics
from omniforcing_jax.train.loop import Measure

BATCHES = 4  # at most, for one look at what is held out


def make_loss(student: PipelineConfig, how: OdeConfig, dtype: DTypeLike) -> Loss[Transformer]:
    """Build the loss of a causal student on batches of pairs with their contexts."""
    sampler = student.sampler
    assert sampler is not None
    blocks = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(sampler.horizon_seconds)))
    whole = clip_block(blocks[-1].video_end, blocks[-1].audio_end)
    positions = make_positions(student.model, whole, student.grid(*student.resolution))

    def loss(params: Transformer, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        video, audio = (batch[name].astype(jnp.float32).swapaxes(0, 1) for name in ("video", "audio"))
        trajectory = Trajectory(video=video, audio=audio, sigmas=jnp.asarray(sampler.sigmas, jnp.float32))
        network = clip_network(student.model, positions, dtype=dtype, remat=keep_projections, student=sampler)
        text = Prompts(prompt=network.masked_text(params, contexts_of(batch)))
        return ode_loss(params, trajectory, text, key, blocks, network, how)

    return loss


def measures(
    arguments: PairsArguments,
    held: data.Source,
    loss: Loss[Transformer],
    params_of: Callable[[Any], Transformer],
    mesh: Mesh | None,
) -> tuple[Measure, ...]:
    """Measure the loss on held-out pairs: the same batches at the same noise levels each time.

    Args:
        arguments: How often, and the rows of a batch.
        held: The pairs, with their contexts; without any there is nothing to measure.
        loss: From `make_loss`.
        params_of: Takes the weights out of the trainer's state.
        mesh: None is one device.
    """
    if not len(held):
        return ()
    program = jax.jit(loss)

    def call(state: Any) -> Metrics:
        found = []
        for index, batch in enumerate(data.ordered_batches(held, arguments.batch, BATCHES, mesh)):
            value, parts = program(params_of(state), batch, jax.random.key(index))
            found.append({"loss": value, **parts})
        return {f"held_out/{name}": jnp.mean(jnp.stack([each[name] for each in found])) for name in found[0]}

    return (Measure(arguments.evaluate_every, call),)
