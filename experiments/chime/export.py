"""Write the teacher and the student that ship with the package, in half precision, beside their codecs.

Command: python -m experiments.chime.export --part teacher|student|stage2 [--run FOLDER]
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import tyro

from experiments.chime import latents, pairs, train_self_forcing, train_student, train_teacher, two_players
from omniforcing_jax import schedule, weights
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.pipeline import PipelineConfig, assemble, save_pipeline
from omniforcing_jax.presets import CHIME_CLIP, CHIME_STREAM

STREAM_STEPS = 16
SHARED = {name: f"../codecs/{name}" for name in ("video_vae", "audio_vae", "vocoder", "text")}


def save(folder: Path, config: PipelineConfig, params: Transformer) -> None:
    """Write a transformer whose other components lie in the codecs' folder."""
    parts = {"transformer": params, **dict.fromkeys(SHARED)}
    save_pipeline(folder, assemble(config, parts), shared=SHARED, dtype=jnp.float16)


def stage2_config() -> PipelineConfig:
    """The configuration of a student before stage 3.

    It has more levels than it learnt at, which it takes well, and noise as a diffusion has it; experiments/LOG.md has
    both beside the alternatives.
    """
    sampler = SamplerConfig(
        sigmas=tuple(schedule.ltx2_schedule(STREAM_STEPS).tolist()),
        horizon_seconds=pairs.SECONDS,
        context_noise=train_student.CONFIG.context_noise,
        renewal=1.0,
    )
    return dataclasses.replace(CHIME_STREAM, sampler=sampler)


def main(
    part: Literal["teacher", "student", "stage2"], run: Path | None = None, out: Path = train_teacher.ASSETS
) -> None:
    """Export the weights of a run: of the teacher, of the student (stage 3), or of a student that is not finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    if part == "teacher":
        vectors = train_teacher.word_vectors()
        weights.save_component(out / "codecs", "text", vectors, latents.WORDS_CONFIG.to_json())
        save(out / part, CHIME_CLIP, train_teacher.trained(run or Path("runs/chime/teacher_third")))
    elif part == "student":
        config = dataclasses.replace(CHIME_STREAM, sampler=train_self_forcing.CONFIG.sampler)
        save(out / part, config, two_players.trained(run or Path("runs/chime/self_forcing")))
    else:
        save(out / part, stage2_config(), train_student.trained(run or Path("runs/chime/student_clean_data")))


if __name__ == "__main__":
    tyro.cli(main)
