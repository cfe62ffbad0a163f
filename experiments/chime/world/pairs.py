"""Trajectories of chime's teacher on disk, which the student's stage 2 can learn from.

A row holds the entries at the student's sigmas of the Euler trajectory that starts at the noise of its seed, and the
token ids of its prompt, in a store of docs/pairs.md.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.world import latents, recipe
from experiments.chime.world.clips import TRAIN_SEED
from omniforcing_jax import config as configs
from omniforcing_jax import guidance, schedule
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.trajectory import noise_of_seeds, trajectory_entries
from omniforcing_jax.io import weights
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.positions import Positions
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.pipeline import presets
from omniforcing_jax.streams import Streams
from omniforcing_jax.text import words
from omniforcing_jax.train.pairs import Pairs, pairs_header, write_pairs
from omniforcing_jax.train.store import writing

FOLDER = recipe.RUNS / "pairs"
SHARDS = 4
# What its teacher is judged with; without guidance it shows the right balls half the time.
BOTH = guidance.StreamGuidance(cfg=3.0)
GUIDANCE = guidance.GuidanceConfig(video=BOTH, audio=BOTH)


def make_trajectory(model: configs.ModelConfig, positions: Positions, vectors: words.Words):
    """Compile (params, ids [B, X], seeds [B]) -> entries of both streams at the student's sigmas, [E, B, ...]."""
    full = schedule.ltx2_schedule(recipe.TEACHER_STEPS)
    tokens = positions.time.cos.shape[0] * positions.rows.cos.shape[0] * positions.columns.cos.shape[0]
    audio_frames = positions.audio_time.cos.shape[0]

    def trajectory(params: Transformer, ids: jax.Array, seeds: jax.Array):
        noise = noise_of_seeds(seeds, model, (tokens, audio_frames))
        prompt, negative = (words.contexts(vectors, text) for text in (ids, words.blank(ids)))
        predict = clip_network(model, positions).guided_x0(params, prompt, negative, GUIDANCE)
        return trajectory_entries(predict, noise, jnp.asarray(full, jnp.float32), recipe.ENTRIES)

    return jax.jit(trajectory)


def write(folder: Path, params: Transformer, count: int, batch: int, shards: int = SHARDS) -> None:
    """Write the trajectories that `folder` lacks; each depends on its row alone, not on the batch it was made in."""
    model = presets.CHIME_TEACHER
    positions = recipe.whole_clip(model, recipe.SECONDS)
    frames, rows, columns = (len(axis.cos) for axis in (positions.time, positions.rows, positions.columns))
    header = pairs_header(
        count=count,
        shards=shards,
        sigmas=recipe.STUDENT_SIGMAS,
        video=(frames, rows, columns, model.video.latent_channels),
        audio=(len(positions.audio_time.cos), model.audio.latent_channels),
        teacher=weights.fingerprint(params),
        extra={"ids": ("int32", latents.prompt_ids(TRAIN_SEED).shape)},
    )
    trajectory = make_trajectory(model, positions, recipe.word_vectors())

    def make(rows: np.ndarray) -> Streams:
        ids = np.stack([latents.prompt_ids(TRAIN_SEED + int(row)) for row in rows])
        return trajectory(params, jnp.asarray(ids), jnp.asarray(rows))

    def describe(row: int) -> tuple[str, dict[str, np.ndarray]]:
        prompt = latents.prompt_of(TRAIN_SEED + row)
        return prompt, {"ids": words.tokenise(recipe.WORDS_CONFIG, prompt)[0].astype(np.int32)}

    with writing(folder, header) as writer:
        write_pairs(writer, batch, make, describe)


def read(folder: Path = FOLDER) -> dict[str, np.ndarray]:
    """Read what `write` wrote, whole: `video` [N, E, T, C], `audio` [N, E, A, C], `ids` [N, X].

    Raises:
        ValueError: If the store is missing, incomplete or not for this student.
    """
    pairs = Pairs(folder, sigmas=recipe.STUDENT_SIGMAS, layout=PREFIX)
    rows = [pairs[index] for index in range(len(pairs))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
