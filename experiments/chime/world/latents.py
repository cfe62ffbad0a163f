"""Clips as latents: what the teacher trains on, encoded once and kept in memory.

A row holds one world from its beginning: normalised video latents [F, h, w, C], normalised audio latents [A, E], and
the token ids of a prompt that it fulfils.
"""

import logging
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.chime.world import encoders, physics
from experiments.chime.world.clips import TRAIN_SEED
from experiments.chime.world.recipe import RUNS, WORDS_CONFIG
from omniforcing_jax.io.atomic_write import replacing
from omniforcing_jax.text import words

FILE = RUNS / "latents.safetensors"

log = logging.getLogger(__name__)


def write(path: Path, codecs: encoders.Encoders, count: int, seconds: int, batch: int = 8) -> None:
    """Encode `count` training worlds into one file (float16)."""
    rows: dict[str, list[np.ndarray]] = {"video": [], "audio": [], "ids": []}
    begun = time.monotonic()
    for first in range(0, count, batch):
        seeds = range(TRAIN_SEED + first, TRAIN_SEED + first + batch)
        pixels, sound = encoders.render_clips(seeds, seconds)
        rows["video"].append(np.asarray(codecs.encode_video(pixels), np.float16))
        rows["audio"].append(np.asarray(codecs.encode_sound(sound), np.float16))
        rows["ids"].append(np.stack([prompt_ids(seed) for seed in seeds]))
        if first % (50 * batch) == 0:
            log.info("%d/%d clips, %.0f s", first, count, time.monotonic() - begun)
    with replacing(path) as new:
        save_file({name: np.concatenate(parts) for name, parts in rows.items()}, new)


def prompt_of(seed: int) -> str:
    """Word a prompt for the world of a seed."""
    return physics.prompt_of(physics.sample_world(seed), np.random.default_rng([seed, 3]))


def prompt_ids(seed: int) -> np.ndarray:
    """Word a prompt for the world of a seed and tokenise it."""
    return words.tokenise(WORDS_CONFIG, prompt_of(seed))[0]


def read(path: Path) -> dict[str, np.ndarray]:
    """Read what `write` wrote.

    Raises:
        ValueError: If the file is missing.
    """
    if not path.exists():
        raise ValueError(f"{path}: no latents; python -m experiments.chime.encode_clips writes them")
    return load_file(path)
