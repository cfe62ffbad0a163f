"""Clips as latents: what the teacher trains on, encoded once and kept in memory.

Command: python -m experiments.chime.latents --count 3000   (after codecs)

A row holds one world from its beginning: normalised video latents [F, h, w, C], normalised audio latents
[A, C], and the token ids of a prompt that it fulfils.
"""

import logging
import time
from pathlib import Path

import numpy as np
import tyro
from safetensors.numpy import load_file, save_file

from experiments.chime import codecs, world
from experiments.chime.clips import TRAIN_SEED
from omniforcing_jax.pipeline.presets import CHIME_WORDS
from omniforcing_jax.text import words

FILE = Path("runs/chime/latents.safetensors")
WORDS_CONFIG = words.WordsConfig(vocabulary=CHIME_WORDS)

log = logging.getLogger(__name__)


def write(path: Path, encoders: codecs.Encoders, count: int, seconds: int, batch: int = 8) -> None:
    """Encode `count` training worlds into one file (float16)."""
    rows: dict[str, list[np.ndarray]] = {"video": [], "audio": [], "ids": []}
    begun = time.monotonic()
    for first in range(0, count, batch):
        seeds = range(TRAIN_SEED + first, TRAIN_SEED + first + batch)
        pixels, sound = codecs.render_clips(seeds, seconds)
        rows["video"].append(np.asarray(encoders.encode_video(pixels), np.float16))
        rows["audio"].append(np.asarray(encoders.encode_sound(sound), np.float16))
        rows["ids"].append(np.stack([prompt_ids(seed) for seed in seeds]))
        if first % (50 * batch) == 0:
            log.info("%d/%d clips, %.0f s", first, count, time.monotonic() - begun)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.concatenate(parts) for name, parts in rows.items()}, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def prompt_of(seed: int) -> str:
    """Word a prompt for the world of a seed."""
    return world.prompt_of(world.sample_world(seed), np.random.default_rng([seed, 3]))


def prompt_ids(seed: int) -> np.ndarray:
    """Word a prompt for the world of a seed and tokenise it."""
    return words.tokenise(WORDS_CONFIG, prompt_of(seed))[0]


def read(path: Path) -> dict[str, np.ndarray]:
    """Read what `write` wrote.

    Raises:
      ValueError: if the file is missing.
    """
    if not path.exists():
        raise ValueError(f"{path}: no latents; run python -m experiments.chime.latents first")
    return load_file(path)


def main(out: Path = FILE, count: int = 2000, seconds: int = 5, encoders: Path = codecs.ASSETS) -> None:
    """Encode training worlds with the codecs in folder `encoders`; `count` is a multiple of 8."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    write(out, codecs.load_encoders(encoders), count, seconds)


if __name__ == "__main__":
    tyro.cli(main)
