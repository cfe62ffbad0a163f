"""Stage 2: a causal student learns to map any entry of the teacher's guided trajectories to their end.

Each block of a clip stands at a level of its own and sees the blocks before it at theirs, in one masked forward.

Source: OmniForcing v2 stage 2, specs/omniforcing.md 7.3.
Deviations: audio takes the level of its block, where the reference spreads the picture's levels by proportion and so
gives 14 of 126 audio latents those of the next block; masters and moments are float32, because the reference's bfloat16
rounds most updates away. `--layout prefix` is the paper's (v1), with 16 sinks; v1's own rates are not taken over.
Hardware: 16 bytes of memory per parameter and activations (docs/distil.md): 300 GB for LTX-2. Not run at that size yet.
Command: python -m experiments.stage2_ode --student ltx2 --contexts contexts --pairs pairs --folder runs/stage2
  --steps 5000
Expect: `video` and `audio`, mean squared errors of x0, fall; runs/stage2/weights is a causal student.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import DTypeLike

from experiments import full_size
from experiments.mains import refusing
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.ode import Context, Error, Trajectory, ode_loss
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer, keep_projections, text_kv, transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.contexts import PairsWithContexts
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
      seconds: length of the clips, one frame not counted.
      sigmas: noise levels of the student; those of the entries in the store.
      context: what a block sees of its past: noisy, as the reference, or clean, as a stream will.
      audio_weight: of the audio term.
    """

    seconds: int = 5
    sigmas: tuple[float, ...] = full_size.V2_SIGMAS
    context: Context = Context.NOISY
    audio_weight: float = 1.0
    optimiser: OptimiserConfig = OptimiserConfig(  # the last rate is the first: constant
        kind="adam", learning_rate=2e-4, last_rate=2e-4, steps=1, warmup=0, b1=0.9, b2=0.999, clip=1.0
    )


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(full_size.Arguments):
    """Make a causal student of a bidirectional network."""

    pairs: Path
    """Store of the teacher's trajectories (docs/pairs.md)."""
    layout: full_size.LayoutName = "fused"
    """Blocks of 4 + 26 latents, then 3 + 25, as released; or of 1 + 1, then 3 + 25, with sinks, as in the paper."""


def make_loss(config: Config, student: PipelineConfig, sampler: SamplerConfig, dtype: DTypeLike) -> gradient.Loss:
    """Build the trainer's loss."""
    blocks = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(config.seconds)))
    whole = clip_block(blocks[-1].video_end, blocks[-1].audio_end)
    positions = make_positions(student.model, whole, student.grid(*student.resolution))

    def loss(params: Transformer, batch: dict[str, Any], key: jax.Array, extra: None):
        video, audio = (batch[name].astype(jnp.float32).swapaxes(0, 1) for name in ("video", "audio"))
        value, metrics = ode_loss(
            params,
            student.model,
            Trajectory(video=video, audio=audio, sigmas=jnp.asarray(config.sigmas, jnp.float32)),
            text_kv(params, *full_size.contexts_of(batch), dtype=dtype),
            rotaries(student.model, positions),
            blocks,
            key,
            context=config.context,
            error=Error.X0,
            audio_weight=config.audio_weight,
            dtype=dtype,
            remat=keep_projections,
        )
        return value, (metrics, extra)

    return loss


def main(arguments: Arguments, config: Config = CONFIG) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    with refusing(), full_size.begin(arguments) as run:
        dtype = jnp.dtype(arguments.dtype)
        layout, sinks = full_size.layout_of(arguments.layout)
        sampler = SamplerConfig(layout=layout, sigmas=config.sigmas, horizon_seconds=config.seconds)
        student = full_size.open_student(arguments.student, sampler, sinks)
        contexts = full_size.open_contexts(arguments.contexts, student.model)
        pairs = full_size.open_pairs(arguments.pairs, student, sampler)
        batches = data.PlacedBatches(PairsWithContexts(pairs, contexts), arguments.batch, arguments.seed, run.mesh)

        rule = optimiser.optimiser(config.optimiser)
        params = full_size.load_network(arguments.student, student.model, jnp.float32, arguments.seed, run.mesh)
        start = partial(state.create, optimiser=rule, seed=arguments.seed, ema=False)
        trainer = meshes.make_beside(start, params, specs=transformer_spec(student.model), mesh=run.mesh)
        loss = gradient.of_loss(make_loss(config, student, sampler, dtype))
        update = step.make_step(loss, rule, site_of=gradient.network_site)
        described = full_size.describe(arguments, config, student)
        trained = loop.train(run.loop, trainer, update, batches, describe=described)
        if int(trained.step) == arguments.steps:
            full_size.save_weights(arguments.folder / "weights", student, trained.params, arguments.student, dtype)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
