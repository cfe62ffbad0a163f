"""Write the teacher and the student that ship with the package, in half precision, beside their codecs.

A student may be written as the mean of a run's weights and those that it began from (`--halfway`).

    python -m experiments.chime.export_networks --part teacher --run runs/chime/teacher
    python -m experiments.chime.export_networks --part student --halfway runs/chime/weights/stage2
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from experiments.chime import train_student, train_teacher
from experiments.chime.world import recipe, train_dmd
from experiments.cli_errors import refusing
from experiments.script import read_flags, start_logging
from omniforcing_jax.io import weights
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.pipeline import PipelineConfig, abstract_pipeline
from omniforcing_jax.pipeline.presets import CHIME_CLIP
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.strict_json import require

SHARED = {name: f"../codecs/{name}" for name in ("video_vae", "audio_vae", "vocoder", "text")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Export the weights of a run."""

    part: Literal["teacher", "student", "stage2"]
    """What to export: the teacher, the student (stage 3), or the student of stage 2."""
    run: Path | None = None
    """Folder of the run; by default teacher_third, self_forcing or student below runs/chime."""
    out: Path = CHIME_WEIGHTS
    """Folder to write; the part gets a folder of its name in it."""
    levels: recipe.Levels = "sixteen"
    """Noise levels that the student streams with by default."""
    halfway: Path | None = None
    """Weights folder of the student that a run of stage 3 began from; the mean of both is written."""


def save(folder: Path, config: PipelineConfig, params: Transformer) -> None:
    """Write a transformer whose other components lie in the codecs' folder."""
    pipeline = dataclasses.replace(abstract_pipeline(config), transformer=params)  # what is shared is not written
    save_pipeline(folder, pipeline, shared=SHARED, dtype=jnp.float16)


def halfway_to(params: Transformer, folder: Path) -> Transformer:
    """Take the mean of a student and the one in weights folder `folder` that its training began from.

    What that keeps of either is in experiments/LOG.md.
    Source: Wortsman et al., arXiv 2109.01903, who do so with fine-tuned classifiers.
    """
    begun = recipe.read_transformer(folder, presets.CHIME)
    return jax.tree.map(lambda own, other: (own + other) / 2, params, begun)


def export(arguments: Arguments) -> None:
    """Write the part.

    Raises:
        ValueError: If a flag is given that has no meaning for this part, or the run has no checkpoint.
    """
    part, run, halfway = arguments.part, arguments.run, arguments.halfway
    require(part == "student" or halfway is None, "halfway", halfway, f"is for --part student, not {part}")
    is_student = part != "teacher"
    require(
        is_student or arguments.levels == "sixteen", "levels", arguments.levels, "is for students: a teacher has none"
    )
    if part == "teacher":
        vectors = recipe.word_vectors()
        weights.save_component(arguments.out / "codecs", "text", vectors, recipe.WORDS_CONFIG.to_json())
        params = train_teacher.trained(run or recipe.RUNS / "teacher_third")
    elif part == "student":
        params = train_dmd.trained(run or recipe.RUNS / "self_forcing")
        params = params if halfway is None else halfway_to(params, halfway)
    else:
        params = train_student.trained(run or recipe.RUNS / "student")
    save(arguments.out / part, recipe.student_config(arguments.levels) if is_student else CHIME_CLIP, params)


def main(arguments: Arguments) -> None:
    """Export; bad input is one line on stderr and exit code 2."""
    start_logging()
    with refusing():
        export(arguments)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
