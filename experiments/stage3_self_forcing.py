r"""Stage 3, joint self-forcing DMD: the student learns from clips that it rolls out itself, with the real cache.

One exit step is drawn for all blocks of a rollout. The whole clip is scored. Then each block gets its gradient in a
second pass, whose memory is that of one block.

Source: OmniForcing (arXiv 2603.11647), stage 3; `configs/stage3_causal_dmd.yaml` at 50a271f (v2).
Deviations: text projections and text keys are trained; the reference's cache cuts them out of the graph by mistake.
Masters and moments are float32, because updates of 2e-5 vanish in bfloat16's rounding.
Hardware: 34 bytes of memory per parameter and activations (docs/distil.md): 640 GB for LTX-2. Not run at that size
yet.
Expect: `generator/dmd` falls slowly and jitters; runs/stage3/weights is the average, a student to stream.

    python -m experiments.stage3_self_forcing --student runs/stage2/weights --teacher ltx2 --contexts contexts \
        --negative "" --folder runs/stage3 --steps 1000
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import tyro

from experiments import ltx2_recipe
from experiments.cli_errors import refusing
from experiments.ltx2_flags import CausalArguments, CausalConfig, DmdArguments
from experiments.ltx2_samples import Examples
from experiments.script import read_flags
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import SelfForcingConfig, self_forcing_of
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.train.distil import DistillConfig
from omniforcing_jax.train.optimiser import OptimiserConfig

ADAM = OptimiserConfig(  # the last rate is the first: constant
    kind="adam", learning_rate=2e-5, last_rate=2e-5, steps=1, warmup=0, b1=0.0, b2=0.999, weight_decay=0.01, clip=1.0
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CausalConfig, DistillConfig):
    """One run.

    Attributes:
        context_noise: Sigma of the clean pass.
        self_forcing: Length of the clips, scoring, exit steps.
    """

    context_noise: float = 0.0
    self_forcing: SelfForcingConfig = SelfForcingConfig(
        dmd=DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0)))
    )
    generator: OptimiserConfig = ADAM
    critic: OptimiserConfig = ADAM


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(CausalArguments, DmdArguments):
    """Train a causal student on its own rollouts."""

    config: Annotated[Config, tyro.conf.arg(name="")] = CONFIG


def main(arguments: Arguments) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    config, dtype = arguments.config, jnp.dtype(arguments.dtype)
    with refusing(), ltx2_recipe.set_up(arguments.batch, arguments.mesh) as mesh:
        seconds = config.self_forcing.seconds
        sampler = config.sampler(arguments.blocks, seconds, config.context_noise)
        begun = ltx2_recipe.open_student(arguments.student, sampler, arguments.sinks, config.cross_timestep)
        opened = ltx2_recipe.open_dmd(arguments, begun)
        prompts, student = ltx2_recipe.Prompts(opened.contexts, arguments.negative), opened.student
        static = StaticConfig(student.model, sampler, student.grid(*student.resolution), dtype)
        method = self_forcing_of(static, opened.teacher, config.self_forcing, remat=keep_projections)
        shown = Examples(ltx2_recipe.texts(arguments, opened.contexts, prompts.prompts), seconds)
        ltx2_recipe.distil(arguments, opened, prompts, method, shown, mesh)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
