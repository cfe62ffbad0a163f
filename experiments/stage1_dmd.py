"""Stage 1: the bidirectional network learns to make a clip in three calls instead of forty, by DMD.

The few-step sampler runs from noise without gradient; from one of the inputs that it met, the generator predicts the
clip that teacher and critic then score.

Source: OmniForcing v1 stage 1, specs/omniforcing.md 7.2 and 7.1; the release (v2) leaves this stage out.
Deviations: the entry at sigma 0 is never drawn, because it carries no gradient; masters and moments are float32,
because updates of 2e-5 vanish in bfloat16's rounding.
Hardware: 34 bytes of memory per parameter and activations (docs/distil.md): 640 GB for LTX-2. Not run at that size yet.
Command: python -m experiments.stage1_dmd --student ltx2 --teacher ltx2 --contexts contexts --negative TEXT
  --folder runs/stage1 --steps 1000
Expect: `generator/dmd` falls slowly and jitters; runs/stage1/weights is the average, a bidirectional network.
"""

import dataclasses

import jax.numpy as jnp
import tyro

from experiments import full_size
from experiments.mains import refusing
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import WholeClip, from_simulation
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import PREFIX, audio_latents, latent_frames
from omniforcing_jax.model.positions import clip_block
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.train.optimiser import OptimiserConfig

ADAM = OptimiserConfig(  # the last rate is the first: constant
    kind="adam", learning_rate=2e-5, last_rate=2e-5, steps=1, warmup=0, b1=0.9, b2=0.999, weight_decay=0.01, clip=3.0
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full_size.TwoPlayers):
    """One run.

    Attributes:
      seconds: length of the clips, one frame not counted.
      sigmas: noise levels of the few-step sampler.
      dmd: how clips are scored.
    """

    seconds: int = 5
    sigmas: tuple[float, ...] = full_size.V1_SIGMAS
    dmd: DmdConfig = DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0)))
    generator: OptimiserConfig = ADAM
    critic: OptimiserConfig = ADAM


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(full_size.DmdArguments):
    """Distil a bidirectional network to a few steps."""


def main(arguments: Arguments, config: Config = CONFIG) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    with refusing(), full_size.begin(arguments) as run:
        student = full_size.open_bidirectional("--student", arguments.student)
        teacher = full_size.open_teacher(arguments.teacher, student)
        contexts = full_size.open_contexts(arguments.contexts, student.model)
        negative = full_size.context_of(contexts, arguments.negative)
        prompts = full_size.Prompts(contexts, arguments.negative)

        frames = latent_frames(PREFIX.frames_for(config.seconds))
        clip = (clip_block(frames, audio_latents(frames)),)  # all of it at once
        grid, compute = (
            student.grid(*student.resolution),
            {"dtype": jnp.dtype(arguments.dtype), "remat": keep_projections},
        )
        make_clip = from_simulation(student.model, config.sigmas, clip, grid, **compute)
        players = WholeClip(make_clip=make_clip, scorer=teacher, blocks=clip, grid=grid, dmd=config.dmd, **compute)
        full_size.distil(run, arguments, config, student, teacher, negative, prompts, players)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
