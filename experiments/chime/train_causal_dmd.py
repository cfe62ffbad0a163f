"""Chime's causal DMD without a rollout: the cheap alternative to stage 3, for the study.

Clips are noised block by block, each block at a level of its own, and predicted in one masked forward. The whole clip
is scored as in stage 3. A student trained so never sees its own errors. Stage 2 must be trained first.

Source: OmniForcing, branch `causal-dmd` (9efe837).
Deviations: clips are rendered, because the teacher's would take an hour to make. All else is as in chime's stage 3, so
the two differ in the clip alone.
Hardware: two CPU cores, 50 minutes for 700 steps beside another training.
Expect: `generator/dmd` falls slowly and jitters; study judges.

    python -m experiments.chime.export_networks --part stage2 --out runs/chime/weights
    python -m experiments.chime.train_causal_dmd
    python -m experiments.chime.export_networks --part student --run runs/chime/causal_dmd --levels nine --out FOLDER
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.chime.world import latents, recipe, train_dmd
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.distill.generator_critic import CausalDmd
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.pipeline import presets

CONFIG = train_dmd.Config()


def clips(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the clips of a file as a store of pairs would have them: trajectories of one entry, [N, 1, T, C]."""
    video, audio = recipe.cut(rows, recipe.SECONDS)
    return {"ids": rows["ids"], "video": video[:, None], "audio": audio[:, None]}


def make_method(config: train_dmd.Config) -> CausalDmd:
    """Let the student predict noised clips in one masked forward."""
    layout = config.sampler.layout
    return CausalDmd(
        model=presets.CHIME,
        sampler=config.sampler,
        scorer=presets.CHIME_TEACHER,
        blocks=layout.blocks(latent_frames(layout.frames_for(recipe.SECONDS))),
        grid=recipe.GRID,
        dmd=config.dmd,
        remat=keep_projections,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(train_dmd.Arguments):
    """Train chime's student by causal DMD, from its stage 2."""

    folder: Path = recipe.RUNS / "causal_dmd"
    data_file: Path = latents.FILE
    """Clips to train on, from encode_clips."""


def main(arguments: Arguments) -> None:
    """Train or continue; bad flags are one line on stderr and exit code 2."""
    with refusing():
        config, rows = arguments.configure(CONFIG), latents.read(arguments.data_file)
    train_dmd.train(config, arguments, make_method(config), clips(rows))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
