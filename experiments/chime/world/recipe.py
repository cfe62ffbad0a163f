"""What chime's trainings share: noise levels, clip lengths, prompts as tokens, and weights to begin from."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax import schedule
from omniforcing_jax.chime.prompts import COLOURS
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.io import weights
from omniforcing_jax.model.positions import Positions, clip_block, make_positions
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.pipeline.presets import CHIME_STREAM, CHIME_WORDS
from omniforcing_jax.text import words
from omniforcing_jax.train import checkpoint
from omniforcing_jax.train.loop import LoopConfig
from omniforcing_jax.train.state import DistillState, TrainState

RUNS = Path("runs/chime")
WORDS_CONFIG = words.WordsConfig(vocabulary=CHIME_WORDS)
WORDS_SEED = 7
GRID = CHIME_STREAM.grid(*CHIME_STREAM.resolution)
SECONDS = 5  # length of the clips that teacher and student are trained on, one frame not counted

TEACHER_STEPS = 40  # Euler steps of the teacher's trajectories
STUDENT_STEPS = (1000, 966, 922, 864, 783, 665, 471, 234, 100, 0)  # in thousandths, snapped to the teacher's levels
ENTRIES, STUDENT_SIGMAS = schedule.snap(STUDENT_STEPS, schedule.ltx2_schedule(TEACHER_STEPS))
SAMPLER = SamplerConfig(sigmas=STUDENT_SIGMAS, horizon_seconds=SECONDS, context_noise=0.1)

Levels = Literal["sixteen", "nine"]
S = TypeVar("S", TrainState, DistillState)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What every training of chime takes."""

    folder: Path
    """Folder for checkpoints and metrics; a run found there goes on."""
    minutes: float | None = None
    """Stop after so many minutes, with a checkpoint."""

    def loop(self, steps: int, save_every: int) -> LoopConfig:
        """Say how long the run is, and where."""
        return LoopConfig(folder=self.folder, steps=steps, save_every=save_every, minutes=self.minutes)


def student_config(levels: Levels = "sixteen") -> PipelineConfig:
    """The configuration of a student of either stage: sixteen levels, or the nine that both were trained at.

    With sixteen it has more levels than it learnt at, which it takes well, and noise as a diffusion has it, while
    stage 3 learns with fresh noise at each; experiments/LOG.md has both beside the alternatives.
    """
    sampler = SAMPLER
    if levels == "sixteen":
        sampler = dataclasses.replace(sampler, sigmas=tuple(schedule.ltx2_schedule(16).tolist()), renewal=1.0)
    return dataclasses.replace(CHIME_STREAM, sampler=sampler)


def word_vectors() -> words.Words:
    """The word vectors, drawn once and never trained: the network's own caption projections learn to read them."""
    return words.init_words(WORDS_CONFIG, jax.random.key(WORDS_SEED))


def cut(clips: dict[str, Any], seconds: int) -> tuple[Any, Any]:
    """Take the first seconds of clips, as tokens [B, T, C] and [B, A, C] (NumPy in, NumPy out; JAX in, JAX out).

    The codecs are causal, so the beginning of a clip's latents is the latents of its beginning.
    """
    video, audio = clips["video"][:, : 1 + 3 * seconds], clips["audio"][:, : 1 + 25 * seconds]
    return video.reshape(video.shape[0], -1, video.shape[-1]), audio


def drop_prompts(ids: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Replace a share of the prompts by the empty one."""
    return jnp.where(jax.random.uniform(key, (ids.shape[0], 1)) < share, words.blank(ids), ids)


def by_balls(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Repeat each clip as often as its prompt names colours, which is once per ball."""
    colours = [words.FIRST_WORD + WORDS_CONFIG.vocabulary.index(colour) for colour in COLOURS]
    balls = np.isin(rows["ids"], colours).sum(axis=1)
    return {name: np.repeat(array, balls, axis=0) for name, array in rows.items()}


def whole_clip(model: ModelConfig, seconds: int) -> Positions:
    """Host tables of a clip of whole seconds and a frame."""
    return make_positions(model, clip_block(1 + 3 * seconds, 1 + 25 * seconds), GRID)


def read_transformer(folder: Path, model: ModelConfig) -> Transformer:
    """Read the transformer of a weights folder, in float32.

    Raises:
        ValueError: In one line, if it is missing, damaged or another network's.
    """
    return weights.load_component(folder, "transformer", spec.abstract(transformer_spec(model)))


def newest(folder: Path, like: S) -> S:
    """Read the trainer's state from the newest checkpoint of a run.

    Args:
        folder: The run's.
        like: a state of the same tree and shapes.

    Raises:
        ValueError: If there is no checkpoint, or one of another trainer.
    """
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), like)
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of a training")
    logging.info("%s: step %d", folder, int(found.state.step))
    return found.state
