r"""Stage 1: the bidirectional network learns to make a clip in three calls instead of forty, by DMD.

The few-step sampler runs from noise without gradient. From one of the inputs that it met, the generator predicts the
clip. Teacher and critic score it.

Source: OmniForcing (arXiv 2603.11647), stage 1; `configs/stage1_bidirectional_dmd.yaml` at 9c25f15 (v1). The release
(v2) leaves this stage out.
Deviations: the entry at sigma 0 is never drawn, because it carries no gradient. Masters and moments are float32,
because updates of 2e-5 vanish in bfloat16's rounding.
Hardware: 34 bytes of memory per parameter and activations (docs/distil.md): 640 GB for LTX-2. Not run at that size
yet.
Expect: `generator/dmd` falls slowly and jitters; runs/stage1/weights is the average, a bidirectional network.

    python -m experiments.stage1_dmd --student ltx2 --teacher ltx2 --contexts contexts --negative "" \
        --folder runs/stage1 --steps 1000
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import tyro

from experiments import ltx2_recipe
from experiments.cli_errors import refusing
from experiments.ltx2_flags import V1_SIGMAS, DmdArguments
from experiments.ltx2_samples import Examples
from experiments.script import read_flags
from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.distill.generator_critic import BackwardSimulation
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import PREFIX, audio_latents, latent_frames
from omniforcing_jax.model.positions import clip_block
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.train.distil import DistillConfig
from omniforcing_jax.train.optimiser import OptimiserConfig

ADAM = OptimiserConfig(  # the last rate is the first: constant
    kind="adam", learning_rate=2e-5, last_rate=2e-5, steps=1, warmup=0, b1=0.9, b2=0.999, weight_decay=0.01, clip=3.0
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DistillConfig):
    """One run.

    Attributes:
        seconds: Length of the clips, one frame not counted.
        sigmas: Noise levels of the few-step sampler.
        dmd: How clips are scored.
    """

    seconds: int = 5
    sigmas: tuple[float, ...] = V1_SIGMAS
    dmd: DmdConfig = DmdConfig(guidance=GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0)))
    generator: OptimiserConfig = ADAM
    critic: OptimiserConfig = ADAM


CONFIG = Config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(DmdArguments):
    """Distil a bidirectional network to a few steps."""

    config: Annotated[Config, tyro.conf.arg(name="")] = CONFIG


def main(arguments: Arguments) -> None:
    """Train or continue; bad input is one line on stderr and exit code 2."""
    config = arguments.config
    with refusing(), ltx2_recipe.set_up(arguments.batch, arguments.mesh) as mesh:
        opened = ltx2_recipe.open_dmd(arguments, ltx2_recipe.open_bidirectional("--student", arguments.student))
        prompts, student = ltx2_recipe.Prompts(opened.contexts, arguments.negative), opened.student
        frames = latent_frames(PREFIX.frames_for(config.seconds))
        method = BackwardSimulation(
            model=student.model,
            sigmas=config.sigmas,
            scorer=opened.teacher,
            blocks=(clip_block(frames, audio_latents(frames)),),  # all of the clip at once
            grid=student.grid(*student.resolution),
            dmd=config.dmd,
            dtype=jnp.dtype(arguments.dtype),
            remat=keep_projections,
        )
        texts = ltx2_recipe.texts(arguments, opened.contexts, prompts.prompts)
        shown = Examples(texts, config.seconds, config.sigmas)
        ltx2_recipe.distil(arguments, opened, prompts, method, shown, mesh)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
