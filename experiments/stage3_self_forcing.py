"""Stage 3: joint self-forcing DMD: the student learns from clips that it rolls out itself, with the real cache.

One exit step is drawn for all blocks of a rollout. The whole clip is scored, then each block gets its gradient in a
second pass, whose memory is that of one block.

Source: OmniForcing v2 stage 3, specs/omniforcing.md 7.4 and 7.1.
Deviations: text projections and text keys are trained, which the reference's cache cuts out of the graph by mistake;
masters and moments are float32, because updates of 2e-5 vanish in bfloat16's rounding.
Hardware: 34 bytes of memory per parameter and activations (docs/distil.md): 640 GB for LTX-2. Not run at that size yet.
Command: python -m experiments.stage3_self_forcing --student runs/stage2/weights --teacher ltx2 --contexts contexts
  --negative TEXT --folder runs/stage3 --steps 1000
Expect: `generator/dmd` falls slowly and jitters; runs/stage3/weights is the average, a student to stream.
"""

import dataclasses

import jax.numpy as jnp
import tyro

from experiments import full_size
from experiments.mains import refusing
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import SelfForcing, SelfForcingConfig
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.train.optimiser import OptimiserConfig

ADAM = OptimiserConfig(  # the last rate is the first: constant
    kind="adam", learning_rate=2e-5, last_rate=2e-5, steps=1, warmup=0, b1=0.0, b2=0.999, weight_decay=0.01, clip=1.0
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full_size.TwoPlayers):
    """One run.

    Attributes:
      sigmas: noise levels of the student's steps.
      context_noise: sigma of the clean pass.
      self_forcing: length of the clips, scoring, exit steps.
    """

    sigmas: tuple[float, ...] = full_size.V2_SIGMAS
    context_noise: float = 0.0
    self_forcing: SelfForcingConfig = SelfForcingConfig(
        dmd=DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0)))
    )
    generator: OptimiserConfig = ADAM
    critic: OptimiserConfig = ADAM


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(full_size.DmdArguments):
    """Train a causal student on its own rollouts."""

    layout: full_size.LayoutName = "fused"
    """Blocks of 4 + 26 latents, then 3 + 25, as released; or of 1 + 1, then 3 + 25, with sinks, as in the paper."""


def main(arguments: Arguments, config: Config = CONFIG) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    with refusing(), full_size.begin(arguments) as run:
        layout, sinks = full_size.layout_of(arguments.layout)
        seconds = config.self_forcing.seconds
        sampler = SamplerConfig(
            layout=layout, sigmas=config.sigmas, horizon_seconds=seconds, context_noise=config.context_noise
        )
        student = full_size.open_student(arguments.student, sampler, sinks)
        teacher = full_size.open_teacher(arguments.teacher, student)
        contexts = full_size.open_contexts(arguments.contexts, student.model)
        negative = full_size.context_of(contexts, arguments.negative)
        prompts = full_size.Prompts(contexts, arguments.negative)

        static = StaticConfig(student.model, sampler, student.grid(*student.resolution), jnp.dtype(arguments.dtype))
        players = SelfForcing(static, teacher, config.self_forcing, remat=keep_projections)
        full_size.distil(run, arguments, config, student, teacher, negative, prompts, players)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
