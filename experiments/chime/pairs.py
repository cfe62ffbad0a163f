"""Trajectories of chime's teacher: what the student's stage 2 learns from.

A row holds the entries at the student's sigmas of the Euler trajectory that starts at the noise of its seed, and the
token ids of its prompt, in a store of docs/pairs.md.

Command: python -m experiments.chime.pairs --count 384   (after train_teacher; a rerun goes on where it stopped)
"""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.chime import latents, train_teacher
from experiments.chime.clips import TRAIN_SEED
from omniforcing_jax import config as configs
from omniforcing_jax import guidance, schedule
from omniforcing_jax.distill.trajectory import draw_noise, guided_entries
from omniforcing_jax.io import weights
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.positions import Positions, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.streams import Streams
from omniforcing_jax.text import words
from omniforcing_jax.train.pairs import Pairs, pairs_header, write_pairs
from omniforcing_jax.train.store import Writer

FOLDER = Path("runs/chime/pairs")
SHARDS = 4
STEPS = 40
STUDENT_STEPS = (1000, 966, 922, 864, 783, 665, 471, 234, 100, 0)
SECONDS = 5
# What its teacher is judged with; without guidance it shows the right balls half the time.
BOTH = guidance.StreamGuidance(cfg=3.0)
GUIDANCE = guidance.GuidanceConfig(video=BOTH, audio=BOTH)


def make_trajectory(model: configs.ModelConfig, positions: Positions, vectors: words.Words):
    """Compile (params, ids [B, X], seeds [B]) -> entries of both streams at the student's sigmas, [E, B, ...]."""
    full = schedule.ltx2_schedule(STEPS)
    indices, _ = schedule.snap(STUDENT_STEPS, full)
    tokens = positions.time.cos.shape[0] * positions.rows.cos.shape[0] * positions.columns.cos.shape[0]
    audio_frames = positions.audio_time.cos.shape[0]

    def trajectory(params: Transformer, ids: jax.Array, seeds: jax.Array):
        noise = draw_noise(seeds, model, (tokens, audio_frames))
        prompt, negative = (words.contexts(vectors, text) for text in (ids, words.blank(ids)))
        levels = jnp.asarray(full, jnp.float32)
        return guided_entries(
            params, model, noise, prompt, negative, levels, indices, GUIDANCE, rotaries(model, positions)
        )

    return jax.jit(trajectory)


def student_sigmas() -> tuple[float, ...]:
    """The sigmas of the entries, from 1 to 0."""
    return schedule.snap(STUDENT_STEPS, schedule.ltx2_schedule(STEPS))[1]


def main(
    teacher: Path = Path("runs/chime/teacher_third"),
    out: Path = FOLDER,
    count: int = 384,
    batch: int = 16,
) -> None:
    """Write `count` trajectories of the teacher; the prompt of row i is that of training world i."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    write(out, train_teacher.trained(teacher), count, batch)


def write(folder: Path, params: Transformer, count: int, batch: int, shards: int = SHARDS) -> None:
    """Write the trajectories that `folder` lacks; each depends on its row alone, not on the batch it was made in."""
    model = train_teacher.FIRST.model
    positions = train_teacher.whole_clip(model, SECONDS)
    frames, rows, columns = (len(axis.cos) for axis in (positions.time, positions.rows, positions.columns))
    header = pairs_header(
        count=count,
        shards=shards,
        sigmas=student_sigmas(),
        video=(frames, rows, columns, model.video.latent_channels),
        audio=(len(positions.audio_time.cos), model.audio.latent_channels),
        teacher=weights.fingerprint(params),
        extra={"ids": ("int32", latents.prompt_ids(TRAIN_SEED).shape)},
    )
    trajectory = make_trajectory(model, positions, train_teacher.word_vectors())

    def make(rows: np.ndarray) -> Streams:
        ids = np.stack([latents.prompt_ids(TRAIN_SEED + int(row)) for row in rows])
        return trajectory(params, jnp.asarray(ids), jnp.asarray(rows))

    def describe(row: int) -> tuple[str, dict[str, np.ndarray]]:
        prompt = latents.prompt_of(TRAIN_SEED + row)
        return prompt, {"ids": words.tokenise(latents.WORDS_CONFIG, prompt)[0].astype(np.int32)}

    write_pairs(Writer(folder, header), batch, make, describe)


def read(folder: Path = FOLDER) -> dict[str, np.ndarray]:
    """Read what `main` wrote, whole: `video` [N, E, T, C], `audio` [N, E, A, C], `ids` [N, X].

    Raises:
      ValueError: if the store is missing, incomplete or not for this student.
    """
    pairs = Pairs(folder, sigmas=student_sigmas(), layout=PREFIX)
    rows = [pairs[index] for index in range(len(pairs))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


if __name__ == "__main__":
    tyro.cli(main)
