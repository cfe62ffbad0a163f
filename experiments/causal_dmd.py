r"""Causal DMD without a rollout: the cheap alternative to stage 3.

The teacher's clips are noised block by block and predicted in one masked forward. The whole clip is scored as in stage
3. A student trained so never sees its own errors.

Source: OmniForcing, branch `causal-dmd` (9efe837); values are those of its stage 3 at 9c25f15 (v1).
Deviations: noise levels and layout are the release's (v2), so that this begins from the same student and pairs as
stage 3 here. Level 0 is never drawn, because it carries no gradient. An average is kept, as in the other stages. The
generator's schedule counts its own updates, a fifth of the steps, so both schedules end at the same step. Masters and
moments are float32, because small updates vanish in bfloat16's rounding.
Hardware: 34 bytes of memory per parameter and activations (docs/distil.md): 640 GB for LTX-2. Not run at that size
yet.
Expect: `generator/dmd` falls slowly and jitters; runs/causal_dmd/weights is the average, a student to stream.

    python -m experiments.causal_dmd --student runs/stage2/weights --teacher ltx2 --contexts contexts \
        --pairs pairs --negative "" --folder runs/causal_dmd --steps 20000
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import tyro

from experiments import ltx2_recipe, ltx2_regression
from experiments.cli_errors import refusing
from experiments.ltx2_flags import CausalArguments, CausalConfig, DmdArguments, PairsArguments
from experiments.ltx2_samples import Examples
from experiments.script import read_flags
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import CausalDmd
from omniforcing_jax.distill.ode import OdeConfig
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.train import data
from omniforcing_jax.train.contexts import WithContexts
from omniforcing_jax.train.distil import DistillConfig
from omniforcing_jax.train.optimiser import OptimiserConfig

ADAM = OptimiserConfig(  # a cosine right after the warm-up
    kind="adam",
    learning_rate=2e-5,
    last_rate=1e-7,
    steps=20_000,
    warmup=1000,
    decay_from=0.0,
    b1=0.9,
    b2=0.999,
    weight_decay=0.01,
    clip=10.0,
)
RATIO = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CausalConfig, DistillConfig):
    """One run.

    Attributes:
        seconds: Length of the clips, one frame not counted.
        dmd: How clips are scored.
    """

    seconds: int = 5
    dmd: DmdConfig = DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=5.0), audio=StreamGuidance(cfg=9.0)))
    generator: OptimiserConfig = dataclasses.replace(ADAM, steps=ADAM.steps // RATIO, warmup=ADAM.warmup // RATIO)
    critic: OptimiserConfig = ADAM
    ratio: int = RATIO


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(CausalArguments, PairsArguments, DmdArguments):
    """Train a causal student on the teacher's clips, noised: the ends of its trajectories."""

    config: Annotated[Config, tyro.conf.arg(name="")] = CONFIG


def main(arguments: Arguments) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    config, dtype = arguments.config, jnp.dtype(arguments.dtype)
    with refusing(), ltx2_recipe.set_up(arguments.batch, arguments.mesh) as mesh:
        layout = arguments.blocks
        sampler = config.sampler(layout, config.seconds)
        begun = ltx2_recipe.open_student(arguments.student, sampler, arguments.sinks, config.cross_timestep)
        opened = ltx2_recipe.open_dmd(arguments, begun)
        student = opened.student
        pairs = ltx2_recipe.open_pairs(arguments.pairs, student, sampler)
        learned, held = data.hold_out(WithContexts(pairs, opened.contexts), arguments.held_out)
        method = CausalDmd(
            model=student.model,
            sampler=sampler,
            scorer=opened.teacher,
            blocks=layout.blocks(latent_frames(layout.frames_for(config.seconds))),
            grid=student.grid(*student.resolution),
            dmd=config.dmd,
            dtype=dtype,
            remat=keep_projections,
        )
        loss = ltx2_regression.make_loss(student, OdeConfig(), dtype)
        measures = ltx2_regression.measures(arguments, [held], loss, ltx2_recipe.generator_average, mesh)
        shown = Examples(ltx2_recipe.texts(arguments, opened.contexts, pairs.prompts), config.seconds)
        ltx2_recipe.distil(arguments, opened, learned, method, shown, mesh, measures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
