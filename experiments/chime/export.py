"""Write the teacher and the student that ship with the package, in half precision, beside their codecs.

Command: python -m experiments.chime.export --part teacher|student|stage2 [--run FOLDER] [--out FOLDER]
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro

from experiments.chime import latents, train_student, train_teacher, two_players
from omniforcing_jax import schedule
from omniforcing_jax.io import weights
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.pipeline import PipelineConfig, assemble
from omniforcing_jax.pipeline.presets import CHIME_CLIP, CHIME_STREAM
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.strict_json import require

SHARED = {name: f"../codecs/{name}" for name in ("video_vae", "audio_vae", "vocoder", "text")}


def save(folder: Path, config: PipelineConfig, params: Transformer) -> None:
    """Write a transformer whose other components lie in the codecs' folder."""
    parts = {"transformer": params, **dict.fromkeys(SHARED)}
    save_pipeline(folder, assemble(config, parts), shared=SHARED, dtype=jnp.float16)


Levels = Literal["sixteen", "nine"]


def student_config(levels: Levels = "sixteen") -> PipelineConfig:
    """The configuration of a student of either stage: sixteen levels, or the nine that both were trained at.

    With sixteen it has more levels than it learnt at, which it takes well, and noise as a diffusion has it, while
    stage 3 learns with fresh noise at each; experiments/LOG.md has both beside the alternatives.
    """
    sampler = two_players.Config().sampler
    if levels == "sixteen":
        sampler = dataclasses.replace(sampler, sigmas=tuple(schedule.ltx2_schedule(16).tolist()), renewal=1.0)
    return dataclasses.replace(CHIME_STREAM, sampler=sampler)


def halfway_to(params: Transformer, folder: Path) -> Transformer:
    """Take the mean of a student and the one in weights folder `folder` that its training began from.

    What that keeps of either is in experiments/LOG.md.
    Source: Wortsman et al., arXiv 2109.01903, who do so with fine-tuned classifiers.
    """
    begun = train_teacher.exported(folder, presets.CHIME)
    return jax.tree.map(lambda own, other: (own + other) / 2, params, begun)


def main(
    part: Literal["teacher", "student", "stage2"],
    run: Path | None = None,
    out: Path = train_teacher.ASSETS,
    levels: Levels = "sixteen",
    halfway: Path | None = None,
) -> None:
    """Export the weights of a run: of the teacher, of the student (stage 3), or of a student that is not finished.

    `levels` are those that a student streams with unless it is told otherwise. What is written of a run of stage 3 lies
    halfway between it and the student in weights folder `halfway`, if one is given: the one that the run began from.

    Raises:
      ValueError: if a flag is given that has no meaning for this part.
    """
    require(part == "student" or halfway is None, "halfway", halfway, f"is for --part student, not {part}")
    require(part != "teacher" or levels == "sixteen", "levels", levels, "is for students: a teacher has none")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    if part == "teacher":
        vectors = train_teacher.word_vectors()
        weights.save_component(out / "codecs", "text", vectors, latents.WORDS_CONFIG.to_json())
        save(out / part, CHIME_CLIP, train_teacher.trained(run or Path("runs/chime/teacher_third")))
    elif part == "student":
        params = two_players.trained(run or Path("runs/chime/self_forcing"))
        save(out / part, student_config(levels), params if halfway is None else halfway_to(params, halfway))
    else:
        save(out / part, student_config(levels), train_student.trained(run or Path("runs/chime/student_clean_data")))


if __name__ == "__main__":
    tyro.cli(main)
