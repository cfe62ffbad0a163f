"""Chime's stage 3: joint self-forcing DMD, from the stage-2 student; the critic begins as the teacher.

The student learns from clips of its own, rolled out with the real cache. It sees what a stream will see: its own
blocks. It learns to make clips that the guided teacher would make, in a few steps per block with fresh noise in each.
Stage 2 must be trained first.

Source: OmniForcing (arXiv 2603.11647), stage 3.
Deviations: 4 million parameters learn at higher rates. The generator is updated at every second step of the critic,
not at every fifth, because the run is short.
Hardware: two CPU cores, 54 minutes for 700 steps beside another training.
Expect: `generator/dmd` falls slowly and jitters; evaluate judges.

    python -m experiments.chime.export_networks --part stage2 --out runs/chime/weights
    python -m experiments.chime.train_self_forcing [--cache-gradient]
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.chime.world import latents, recipe, train_dmd
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.distill.generator_critic import SelfForcing, SelfForcingConfig, self_forcing_of
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.presets import RELEASED_SIGMAS
from omniforcing_jax.rollout import StaticConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train_dmd.Config):
    """One run.

    Attributes:
        cache_gradient: See SelfForcingConfig.
    """

    cache_gradient: bool = False


CONFIG = Config()
FOUR = dataclasses.replace(  # the reference's list: four calls per block
    CONFIG, sampler=dataclasses.replace(CONFIG.sampler, sigmas=RELEASED_SIGMAS)
)


def make_method(config: Config) -> SelfForcing:
    """Let the student roll out clips as long as the teacher's, block by block."""
    static = StaticConfig(presets.CHIME, config.sampler, recipe.GRID)
    stage3 = SelfForcingConfig(dmd=config.dmd, cache_gradient=config.cache_gradient)
    return self_forcing_of(static, presets.CHIME_TEACHER, stage3, remat=keep_projections)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(train_dmd.Arguments):
    """Train chime's student by self-forcing, from its stage 2."""

    folder: Path = recipe.RUNS / "self_forcing"
    prompts: int = 2000
    """Prompts to train on: those of so many clips of encode_clips, which themselves are not needed."""
    cache_gradient: bool = False
    """Train what a block leaves in the cache, too: self gradient forcing."""
    levels: Literal["nine", "four"] = "nine"
    """Noise levels: the nine of stage 2, or the reference's four."""


def main(arguments: Arguments) -> None:
    """Train or continue; bad flags are one line on stderr and exit code 2."""
    with refusing():
        chosen = CONFIG if arguments.levels == "nine" else FOUR
        config = arguments.configure(dataclasses.replace(chosen, cache_gradient=arguments.cache_gradient))
        if arguments.prompts < config.batch:
            raise ValueError(f"--prompts {arguments.prompts}: must be at least the batch of {config.batch}")
    train_dmd.train(config, arguments, make_method(config), {"ids": latents.prompts(arguments.prompts)})


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
