"""Stage 2: a causal student learns to map any entry of the teacher's guided trajectories to their end.

Each block of a clip is at a level of its own and sees the blocks before it at theirs, in one masked forward.

Source: OmniForcing (arXiv 2603.11647), stage 2; `configs/stage2_causal_ode.yaml` at 50a271f (v2).
Deviations: audio takes the level of its block. The reference spreads the picture's levels by proportion, which gives
14 of 126 audio latents those of the next block. Masters and moments are float32, because the reference's bfloat16
rounds most updates away. `--layout prefix` is the paper's (v1), with 16 sinks; v1's own rates are not taken over.
Hardware: 16 bytes of memory per parameter and activations (docs/distil.md): 300 GB for LTX-2. Not run at that size
yet.
Expect: `video` and `audio`, mean squared errors of x0, fall; runs/stage2/weights is a causal student.

    python -m experiments.stage2_ode --student ltx2 --contexts contexts --pairs pairs --folder runs/stage2 --steps 5000
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from experiments import ltx2_recipe
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.generator_critic import contexts_of
from omniforcing_jax.distill.ode import Context, Error, OdeConfig, Prompts, Trajectory, ode_loss
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions
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
    sigmas: tuple[float, ...] = ltx2_recipe.V2_SIGMAS
    context: Context = Context.NOISY
    audio_weight: float = 1.0
    optimiser: OptimiserConfig = OptimiserConfig(  # the last rate is the first: constant
        kind="adam", learning_rate=2e-4, last_rate=2e-4, steps=1, warmup=0, b1=0.9, b2=0.999, clip=1.0
    )


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ltx2_recipe.CausalArguments, ltx2_recipe.Arguments):
    """Make a causal student of a bidirectional network."""

    pairs: Path
    """Store of the teacher's trajectories (docs/pairs.md)."""


def make_loss(config: Config, student: PipelineConfig, sampler: SamplerConfig, dtype: DTypeLike):
    """Build the trainer's loss."""
    blocks = sampler.layout.blocks(latent_frames(sampler.layout.frames_for(config.seconds)))
    whole = clip_block(blocks[-1].video_end, blocks[-1].audio_end)
    positions = make_positions(student.model, whole, student.grid(*student.resolution))
    how = OdeConfig(context=config.context, error=Error.X0, audio_weight=config.audio_weight)

    def loss(params: Transformer, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        video, audio = (batch[name].astype(jnp.float32).swapaxes(0, 1) for name in ("video", "audio"))
        trajectory = Trajectory(video=video, audio=audio, sigmas=jnp.asarray(config.sigmas, jnp.float32))
        text = Prompts(prompt=text_kv(params, *contexts_of(batch), dtype=dtype))
        network = clip_network(student.model, positions, dtype=dtype, remat=keep_projections)
        return ode_loss(params, trajectory, text, key, blocks, network, how)

    return loss


def main(arguments: Arguments, config: Config = CONFIG) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    with refusing(), ltx2_recipe.begin(arguments) as run:
        dtype = jnp.dtype(arguments.dtype)
        layout, sinks = ltx2_recipe.layout_of(arguments.layout)
        sampler = SamplerConfig(layout=layout, sigmas=config.sigmas, horizon_seconds=config.seconds)
        student = ltx2_recipe.open_student(arguments.student, sampler, sinks)
        contexts = ltx2_recipe.open_contexts(arguments.contexts, student.model)
        pairs = ltx2_recipe.open_pairs(arguments.pairs, student, sampler)
        batches = data.PlacedBatches(PairsWithContexts(pairs, contexts), arguments.batch, arguments.seed, run.mesh)

        rule = optimiser.optimiser(config.optimiser)
        params = ltx2_recipe.load_network(arguments.student, student.model, jnp.float32, arguments.seed, run.mesh)
        start = partial(state.create, optimiser=rule, seed=arguments.seed, ema=False)
        trainer = meshes.make_beside(start, params, specs=transformer_spec(student.model), mesh=run.mesh)
        loss = gradient.of_loss(make_loss(config, student, sampler, dtype))
        update = step.make_step(loss, rule, site_of=gradient.network_site)
        described = ltx2_recipe.describe(arguments, config, student)
        trained = loop.train(run.loop, trainer, update, batches, describe=described)
        if int(trained.step) == arguments.steps:
            ltx2_recipe.save_weights(arguments.folder / "weights", student, trained.params, arguments.student, dtype)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
