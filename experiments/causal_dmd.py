"""Causal DMD without a rollout: the cheap alternative to stage 3.

The teacher's clips are noised block by block and predicted in one masked forward; the whole clip is scored as in
stage 3. A student trained so never sees its own errors.

Source: the reference's causal-dmd branch, specs/omniforcing.md 7.5; values are those of v1's stage 3.
Deviations: noise levels and layout are the release's (v2), so that it begins from the same student and the same pairs
as stage 3 here; level 0 is never drawn, because it carries no gradient; an average is kept as in the other stages;
the generator's schedule counts its own updates, a fifth of the steps, so both schedules end at the same step; masters
and moments are float32, because small updates vanish in bfloat16's rounding.
Hardware: 34 bytes of memory per parameter and activations (docs/distil.md): 640 GB for LTX-2. Not run at that size yet.
Command: python -m experiments.causal_dmd --student runs/stage2/weights --teacher ltx2 --contexts contexts
  --pairs pairs --negative TEXT --folder runs/causal_dmd --steps 20000
Expect: `generator/dmd` falls slowly and jitters; runs/causal_dmd/weights is the average, a student to stream.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tyro

from experiments import full_size
from experiments.mains import refusing
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import WholeClip, from_clips
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.streams import Streams
from omniforcing_jax.train.contexts import PairsWithContexts
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
class Config(full_size.TwoPlayers):
    """One run.

    Attributes:
      seconds: length of the clips, one frame not counted.
      sigmas: noise levels of the student.
      dmd: how clips are scored.
    """

    seconds: int = 5
    sigmas: tuple[float, ...] = full_size.V2_SIGMAS
    dmd: DmdConfig = DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=5.0), audio=StreamGuidance(cfg=9.0)))
    generator: OptimiserConfig = dataclasses.replace(ADAM, steps=ADAM.steps // RATIO, warmup=ADAM.warmup // RATIO)
    critic: OptimiserConfig = ADAM
    ratio: int = RATIO


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(full_size.DmdArguments):
    """Train a causal student on the teacher's clips, noised."""

    pairs: Path
    """Store of the teacher's trajectories (docs/pairs.md), of which the clips are used."""
    layout: full_size.LayoutName = "fused"
    """Blocks of 4 + 26 latents, then 3 + 25, as released; or of 1 + 1, then 3 + 25, with sinks, as in the paper."""


def clips_of(batch: dict[str, Any]) -> Streams:
    """Take the ends of the trajectories."""
    return Streams(*(batch[name][:, -1].astype(jnp.float32) for name in ("video", "audio")))


def main(arguments: Arguments, config: Config = CONFIG) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    with refusing(), full_size.begin(arguments) as run:
        layout, sinks = full_size.layout_of(arguments.layout)
        sampler = SamplerConfig(layout=layout, sigmas=config.sigmas, horizon_seconds=config.seconds)
        student = full_size.open_student(arguments.student, sampler, sinks)
        teacher = full_size.open_teacher(arguments.teacher, student)
        contexts = full_size.open_contexts(arguments.contexts, student.model)
        negative = full_size.context_of(contexts, arguments.negative)
        source = PairsWithContexts(full_size.open_pairs(arguments.pairs, student, sampler), contexts)

        blocks = layout.blocks(latent_frames(layout.frames_for(config.seconds)))
        grid, compute = (
            student.grid(*student.resolution),
            {"dtype": jnp.dtype(arguments.dtype), "remat": keep_projections},
        )
        make_clip = from_clips(student.model, config.sigmas, blocks, grid, **compute)
        players = WholeClip(make_clip=make_clip, scorer=teacher, blocks=blocks, grid=grid, dmd=config.dmd, **compute)
        full_size.distil(run, arguments, config, student, teacher, negative, source, players, clips_of)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
