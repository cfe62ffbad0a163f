"""Stage 2: a causal student learns to map any entry of the teacher's guided trajectories to their end.

Each block of a clip is at a level of its own and sees the blocks before it at theirs, in one masked forward. Real clips
(`--clips`, docs/videos.md) may be learned from beside the trajectories or instead of them: that is diffusion forcing.

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
from typing import Annotated, Any

import jax.numpy as jnp
import tyro

from experiments import ltx2_recipe, ltx2_regression
from experiments.cli_errors import refusing
from experiments.ltx2_flags import CausalArguments, CausalConfig, ExamplesArguments
from experiments.ltx2_samples import Examples
from experiments.ltx2_sources import open_sources
from experiments.script import read_flags
from omniforcing_jax.distill.ode import Context, Error, OdeConfig
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.train import gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CausalConfig):
    """One run.

    Attributes:
        seconds: Length of the clips, one frame not counted.
        context: What a block sees of its past: noisy, as the reference, or clean, as a stream will.
        audio_weight: Of the audio term.
        ema_decay: Keep an average of the weights, whose decay warms up to this, and write it at the end. None keeps
            none, as the reference.
        optimiser: How the student is updated.
    """

    seconds: int = 5
    context: Context = Context.NOISY
    audio_weight: float = 1.0
    ema_decay: float | None = None
    optimiser: OptimiserConfig = OptimiserConfig(  # the last rate is the first: constant
        kind="adam", learning_rate=2e-4, last_rate=2e-4, steps=1, warmup=0, b1=0.9, b2=0.999, clip=1.0
    )


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(CausalArguments, ExamplesArguments):
    """Make a causal student of a bidirectional network."""

    config: Annotated[Config, tyro.conf.arg(name="")] = CONFIG


def weights_of(trainer: Any) -> Transformer:
    """Take the weights that will be written: the average where one is kept."""
    return trainer.params if trainer.ema is None else trainer.ema


def main(arguments: Arguments) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    config, dtype = arguments.config, jnp.dtype(arguments.dtype)
    with refusing(), ltx2_recipe.set_up(arguments.batch, arguments.mesh) as mesh:
        sampler = config.sampler(arguments.blocks, config.seconds)
        student = ltx2_recipe.open_student(arguments.student, sampler, arguments.sinks, config.cross_timestep)
        contexts = ltx2_recipe.open_contexts(arguments.contexts, student.model)
        sources = open_sources(arguments, student, sampler, contexts, mesh)
        shown = Examples(ltx2_recipe.texts(arguments, contexts, sources.prompts), config.seconds)
        hooks = ltx2_recipe.sample_hooks(arguments, student, shown, weights_of)

        rule, averaged = optimiser.optimiser(config.optimiser), config.ema_decay is not None
        params = ltx2_recipe.load_network(arguments.student, student.model, jnp.float32, arguments.seed, mesh)
        start = partial(state.create, optimiser=rule, seed=arguments.seed, ema=averaged)
        trainer = meshes.make_beside(start, params, specs=transformer_spec(student.model), mesh=mesh)
        how = OdeConfig(context=config.context, error=Error.X0, audio_weight=config.audio_weight)
        loss = ltx2_regression.make_loss(student, how, dtype)
        decay = config.ema_decay or 0.0
        update = step.make_step(gradient.of_loss(loss), rule, ema_decay=decay, site_of=gradient.network_site)
        measures = ltx2_regression.measures(arguments, sources.held, loss, weights_of, mesh)
        described = ltx2_recipe.describe(arguments, student)
        extras = {"hooks": hooks, "measures": measures, "describe": described}
        trained = loop.train(arguments, trainer, update, sources.batches, **extras)
        if int(trained.step) == arguments.steps:
            ltx2_recipe.save_weights(
                arguments.folder / "weights", student, weights_of(trained), arguments.student, dtype
            )


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
