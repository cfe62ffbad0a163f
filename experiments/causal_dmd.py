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
        --pairs pairs --negative "TEXT" --folder runs/causal_dmd --steps 20000
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from experiments import ltx2_recipe
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import CausalDmd
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.train.contexts import PairsWithContexts
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
class Config(DistillConfig):
    """One run.

    Attributes:
      seconds: length of the clips, one frame not counted.
      sigmas: noise levels of the student.
      dmd: how clips are scored.
    """

    seconds: int = 5
    sigmas: tuple[float, ...] = ltx2_recipe.V2_SIGMAS
    dmd: DmdConfig = DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=5.0), audio=StreamGuidance(cfg=9.0)))
    generator: OptimiserConfig = dataclasses.replace(ADAM, steps=ADAM.steps // RATIO, warmup=ADAM.warmup // RATIO)
    critic: OptimiserConfig = ADAM
    ratio: int = RATIO


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ltx2_recipe.CausalArguments, ltx2_recipe.DmdArguments):
    """Train a causal student on the teacher's clips, noised."""

    pairs: Path
    """Store of the teacher's trajectories (docs/pairs.md); only their ends, the clips, are used."""


def main(arguments: Arguments, config: Config = CONFIG) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    with refusing(), ltx2_recipe.begin(arguments) as run:
        layout, sinks = ltx2_recipe.layout_of(arguments.layout)
        sampler = SamplerConfig(layout=layout, sigmas=config.sigmas, horizon_seconds=config.seconds)
        opened = ltx2_recipe.open_dmd(arguments, ltx2_recipe.open_student(arguments.student, sampler, sinks))
        student = opened.student
        pairs = ltx2_recipe.open_pairs(arguments.pairs, student, sampler)
        method = CausalDmd(
            model=student.model,
            sigmas=config.sigmas,
            scorer=opened.teacher,
            blocks=layout.blocks(latent_frames(layout.frames_for(config.seconds))),
            grid=student.grid(*student.resolution),
            dmd=config.dmd,
            dtype=jnp.dtype(arguments.dtype),
            remat=keep_projections,
        )
        ltx2_recipe.distil(run, arguments, config, opened, PairsWithContexts(pairs, opened.contexts), method)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
