"""The loss of stage 2, on a teacher's trajectories and on real clips, and what is measured on those held out."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from experiments.ltx2_flags import HeldOutArguments
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.generator_critic import contexts_of
from omniforcing_jax.distill.ode import OdeConfig, Prompts, Trajectory, noise_clip, ode_loss
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import Transformer, keep_projections
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.streams import Streams
from omniforcing_jax.train import data
from omniforcing_jax.train.gradient import Loss, Metrics
from omniforcing_jax.train.loop import Measure

BATCHES = 4  # at most, for one look at what is held out
REAL = "real/"  # before the metrics of real clips


def make_loss(student: PipelineConfig, how: OdeConfig, dtype: DTypeLike) -> Loss[Transformer]:
    """Build the loss of a causal student on batches with contexts: of pairs, or of clips of any size and length."""
    sampler = student.sampler
    assert sampler is not None
    horizon = latent_frames(sampler.layout.frames_for(sampler.horizon_seconds))

    def of_trajectory(
        params: Transformer, batch: dict[str, Any], key: jax.Array, trajectory: Trajectory, shape: tuple[int, int, int]
    ) -> tuple[jax.Array, Metrics]:
        frames, *grid = shape
        blocks = sampler.layout.blocks(frames)
        whole = clip_block(blocks[-1].video_end, blocks[-1].audio_end)
        positions = make_positions(student.model, whole, (grid[0], grid[1]))
        network = clip_network(student.model, positions, dtype=dtype, remat=keep_projections, student=sampler)
        text = Prompts(prompt=network.masked_text(params, contexts_of(batch)))
        return ode_loss(params, trajectory, text, key, blocks, network, how)

    def loss(params: Transformer, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        sigmas = jnp.asarray(sampler.sigmas, jnp.float32)  # not above: a program for absent devices makes no array
        if "clip_video" not in batch:
            video, audio = (batch[name].astype(jnp.float32).swapaxes(0, 1) for name in ("video", "audio"))
            trajectory = Trajectory(video=video, audio=audio, sigmas=sigmas)
            return of_trajectory(params, batch, key, trajectory, (horizon, *student.grid(*student.resolution)))
        video, audio = (batch[name].astype(jnp.float32) for name in ("clip_video", "clip_audio"))
        rows, *shape, channels = video.shape
        for_noise, for_loss = jax.random.split(key)
        trajectory = noise_clip(Streams(video.reshape(rows, -1, channels), audio), sigmas, for_noise)
        value, metrics = of_trajectory(params, batch, for_loss, trajectory, (shape[0], shape[1], shape[2]))
        return value, {REAL + name: metric for name, metric in metrics.items()}

    return loss


def measures(
    arguments: HeldOutArguments,
    held: Sequence[data.Source],
    loss: Loss[Transformer],
    params_of: Callable[[Any], Transformer],
    mesh: Mesh | None,
) -> tuple[Measure, ...]:
    """Measure the loss on what is held out: the same batches at the same noise levels each time.

    Args:
        arguments: How often, and the rows of a batch.
        held: Pairs or clips of one bucket each, with their contexts; without any there is nothing to measure.
        loss: From `make_loss`.
        params_of: Takes the weights out of the trainer's state.
        mesh: None is one device.
    """
    sources = [source for source in held if len(source)]
    if not sources:
        return ()
    program = jax.jit(loss)

    def call(state: Any) -> Metrics:
        found: dict[str, list[jax.Array]] = {}
        for source in sources:
            for index, batch in enumerate(data.ordered_batches(source, arguments.batch, BATCHES, mesh)):
                value, parts = program(params_of(state), batch, jax.random.key(index))
                real = REAL if "clip_video" in batch else ""
                for name, metric in {f"{real}loss": value, **parts}.items():
                    found.setdefault(f"held_out/{name}", []).append(metric)
        return {name: jnp.mean(jnp.stack(metrics)) for name, metrics in found.items()}

    return (Measure(arguments.evaluate_every, call),)
