"""Chime's stage 3: joint self-forcing DMD, from the stage-2 student; the critic begins as the teacher.

The student learns from clips of its own, rolled out with the real cache, so it sees what a stream will see: its own
blocks. What is learned is to make clips that the teacher, guided, would make, in a few steps per block with fresh noise
each.

Source: OmniForcing stage 3 (specs/omniforcing.md 7.4). Deviations: 4 million parameters learn at higher rates; the
generator is updated at every second step of the critic, not at every fifth, because the run is short.
Hardware: two CPU cores, 54 minutes for 700 steps beside another training.
Commands, after stage 2 (train_student):
  python -m experiments.chime.export --part stage2 --out runs/chime/weights
  python -m experiments.chime.train_self_forcing [--minutes M]
Expect: `generator/dmd` falls slowly and jitters; evaluate judges.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.chime import latents, train_teacher, two_players
from omniforcing_jax.distill.generator_critic import SelfForcing, SelfForcingConfig
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.presets import CHIME_STREAM, RELEASED_SIGMAS
from omniforcing_jax.rollout import StaticConfig

CONFIG = two_players.Config()
FOUR = dataclasses.replace(  # the reference's list: four calls per block
    CONFIG, sampler=dataclasses.replace(CONFIG.sampler, sigmas=RELEASED_SIGMAS)
)


def make_players(config: two_players.Config) -> SelfForcing:
    """Let the student roll out clips as long as the teacher's, block by block."""
    static = StaticConfig(presets.CHIME, config.sampler, CHIME_STREAM.grid(*CHIME_STREAM.resolution))
    stage3 = SelfForcingConfig(dmd=config.dmd)
    return SelfForcing(static, presets.CHIME_TEACHER, stage3, remat=keep_projections)


def main(
    folder: Path = Path("runs/chime/self_forcing"),
    teacher: Path = train_teacher.ASSETS / "teacher",
    student: Path = Path("runs/chime/weights/stage2"),
    data_file: Path = latents.FILE,
    minutes: float | None = None,
    sample_every: int | None = None,
    levels: Literal["nine", "four"] = "nine",
) -> None:
    """Train or continue in `folder`, from the weights folders of a teacher and a stage-2 student.

    Every `sample_every` steps clips and their contact sheets go to `folder`/samples.
    """
    config = CONFIG if levels == "nine" else FOUR
    begin = two_players.Begin(
        folder=folder, teacher=teacher, student=student, minutes=minutes, sample_every=sample_every
    )
    prompts = {"ids": latents.read(data_file)["ids"]}
    two_players.train(config, begin, make_players(config), prompts)


if __name__ == "__main__":
    tyro.cli(main)
