"""Trajectories of chime's teacher: what the student's stage 2 learns from.

A row holds the noise of one seed, the entries at the student's sigmas of the Euler trajectory that
starts there, and the token ids of its prompt (float16; `sigmas` beside them).

Command: python -m experiments.chime.pairs --count 384   (after train_teacher)
"""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from safetensors.numpy import load_file, save_file

from experiments.chime import latents, train_teacher
from experiments.chime.clips import TRAIN_SEED
from omniforcing_jax import config as configs
from omniforcing_jax import guidance, schedule
from omniforcing_jax.model.dual_stream import Keep
from omniforcing_jax.model.place import Places, rotaries
from omniforcing_jax.model.transformer import Transformer, predict, text_kv
from omniforcing_jax.model.view import bidirectional, one_sigma
from omniforcing_jax.text import words

FILE = Path("runs/chime/pairs.safetensors")
STEPS = 40
STUDENT_STEPS = (1000, 966, 922, 864, 783, 665, 471, 234, 100, 0)
SECONDS = 5
GUIDANCE = guidance.GuidanceConfig()  # chime's teacher follows its prompts without

log = logging.getLogger(__name__)


def make_trajectory(model: configs.ModelConfig, places: Places, vectors: words.Words):
    """Compile (params, ids [B, X], key) -> entries of both streams at the student's sigmas, [E, B, ...]."""
    full = schedule.ltx2_schedule(STEPS)
    indices, _ = schedule.snap(STUDENT_STEPS, full)
    tokens = places.time.cos.shape[0] * places.rows.cos.shape[0] * places.columns.cos.shape[0]
    audio_frames = places.audio_time.cos.shape[0]

    def trajectory(params: Transformer, ids: jax.Array, key: jax.Array):
        rotation = rotaries(model, places)
        empty = jnp.broadcast_to(jnp.where(jnp.arange(ids.shape[1]) == 0, words.START, words.PAD), ids.shape)

        def predict_x0(noisy: guidance.Latents, sigma: jax.Array, tokens_of_text: jax.Array, keep: Keep):
            context = words.embed(vectors, tokens_of_text)
            text = text_kv(params, context, context, tokens_of_text != words.PAD)
            velocity = predict(params, model, *noisy, bidirectional(model, rotation, one_sigma(sigma)), text, keep=keep)
            video, audio = noisy
            return schedule.to_x0(video, velocity.video, sigma), schedule.to_x0(audio, velocity.audio, sigma)

        def guided(noisy: guidance.Latents, sigma: jax.Array):
            return guidance.guided_x0(predict_x0, noisy, sigma, ids, empty, GUIDANCE, model.layers)

        for_video, for_audio = jax.random.split(key)
        noise = (
            jax.random.normal(for_video, (ids.shape[0], tokens, model.video.latent_channels), jnp.float32),
            jax.random.normal(for_audio, (ids.shape[0], audio_frames, model.audio.latent_channels), jnp.float32),
        )
        entries = guidance.euler_trajectory(guided, noise, jnp.asarray(full, jnp.float32))
        return jax.tree.map(lambda x: x[np.array(indices)], entries)

    return jax.jit(trajectory)


def student_sigmas() -> tuple[float, ...]:
    """The sigmas of the entries, from 1 to 0."""
    return schedule.snap(STUDENT_STEPS, schedule.ltx2_schedule(STEPS))[1]


def main(
    teacher: Path = Path("runs/chime/teacher_second"),
    out: Path = FILE,
    count: int = 384,
    batch: int = 16,
) -> None:
    """Write `count` trajectories of the teacher; the prompt of row i is that of training world i."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    params = train_teacher.trained(teacher)
    model = train_teacher.FIRST.model
    trajectory = make_trajectory(model, train_teacher.whole_clip(model, SECONDS), train_teacher.word_vectors())
    rows: dict[str, list[np.ndarray]] = {"video": [], "audio": [], "ids": []}
    for first in range(0, count, batch):
        ids = np.stack([latents.prompt_ids(TRAIN_SEED + first + i) for i in range(batch)])
        video, audio = trajectory(params, jnp.asarray(ids), jax.random.fold_in(jax.random.key(SECONDS), first))
        rows["video"].append(np.asarray(video.swapaxes(0, 1), np.float16))
        rows["audio"].append(np.asarray(audio.swapaxes(0, 1), np.float16))
        rows["ids"].append(ids)
        log.info("%d/%d trajectories", first + batch, count)
    arrays = {name: np.concatenate(parts) for name, parts in rows.items()}
    save_file({**arrays, "sigmas": np.array(student_sigmas(), np.float32)}, out.with_suffix(".new"))
    out.with_suffix(".new").rename(out)


def read(path: Path = FILE) -> dict[str, np.ndarray]:
    """Read what `main` wrote.

    Raises:
      ValueError: if the file is missing, or holds entries at other sigmas than the student's.
    """
    if not path.exists():
        raise ValueError(f"{path}: no trajectories; run python -m experiments.chime.pairs first")
    arrays = load_file(path)
    sigmas = tuple(arrays.pop("sigmas").tolist())
    if not np.allclose(sigmas, student_sigmas(), atol=1e-6):
        raise ValueError(f"{path}: entries at sigmas {sigmas}, expected {student_sigmas()}")
    return arrays


if __name__ == "__main__":
    tyro.cli(main)
