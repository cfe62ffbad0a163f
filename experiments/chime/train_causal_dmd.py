"""Chime's causal DMD without a rollout: the cheap alternative to stage 3, for the study.

Clips are noised block by block, each block at a level of its own, and predicted in one masked forward; the whole clip
is scored as in stage 3. A student trained so never sees its own errors.

Source: the reference's causal-dmd branch, specs/omniforcing.md 7.5. Deviations: clips are rendered, not the teacher's,
which would take an hour to make; everything else is as in chime's stage 3, so that the two differ in the clip alone.
Hardware: two CPU cores, 50 minutes for 700 steps beside another training.
Commands, after stage 2 (train_student):
  python -m experiments.chime.export --part stage2 --out runs/chime/weights
  python -m experiments.chime.train_causal_dmd [--minutes M]
  python -m experiments.chime.export --part student --run runs/chime/causal_dmd --levels nine --out FOLDER
Expect: `generator/dmd` falls slowly and jitters; study judges.
"""

from pathlib import Path

import tyro

from experiments.chime import latents, pairs, train_teacher, two_players
from omniforcing_jax.distill.generator_critic import WholeClip, from_clips
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.transformer import keep_projections
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.presets import CHIME_STREAM
from omniforcing_jax.streams import Streams

CONFIG = two_players.Config()


def clips_of(batch: dict) -> Streams:
    """Take a batch's clips."""
    return Streams(*train_teacher.cut(batch, pairs.SECONDS))


def make_players(config: two_players.Config) -> WholeClip:
    """Let the student predict noised clips in one masked forward."""
    layout, grid = config.sampler.layout, CHIME_STREAM.grid(*CHIME_STREAM.resolution)
    blocks = layout.blocks(latent_frames(layout.frames_for(pairs.SECONDS)))
    make_clip = from_clips(presets.CHIME, config.sampler.sigmas, blocks, grid, remat=keep_projections)
    scorer = presets.CHIME_TEACHER
    return WholeClip(
        make_clip=make_clip, scorer=scorer, blocks=blocks, grid=grid, dmd=config.dmd, remat=keep_projections
    )


def main(
    folder: Path = Path("runs/chime/causal_dmd"),
    teacher: Path = train_teacher.ASSETS / "teacher",
    student: Path = Path("runs/chime/weights/stage2"),
    data_file: Path = latents.FILE,
    minutes: float | None = None,
) -> None:
    """Train or continue in `folder`, from the weights folders of a teacher and a stage-2 student."""
    begin = two_players.Begin(folder=folder, teacher=teacher, student=student, minutes=minutes)
    two_players.train(CONFIG, begin, make_players(CONFIG), latents.read(data_file), clips_of)


if __name__ == "__main__":
    tyro.cli(main)
