"""Clips as latents: what the teacher trains on, encoded once and kept in memory.

A row holds one world from its beginning: normalised video latents [F, h, w, C], normalised audio latents [A, E], and
the token ids of a prompt that it fulfils.
"""

import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.chime.world import encoders
from experiments.chime.world.clips import TRAIN_SEED
from experiments.chime.world.recipe import RUNS, WORDS_CONFIG
from omniforcing_jax.chime import physics
from omniforcing_jax.io.atomic_write import replacing
from omniforcing_jax.text import words

FILE = RUNS / "latents.safetensors"

log = logging.getLogger(__name__)


def write(path: Path, codecs: encoders.Encoders, count: int, seconds: int, batch: int = 8, workers: int = 1) -> None:
    """Encode `count` training worlds into one file (float16), rendered by so many processes (1: by this one)."""
    rows: dict[str, list[np.ndarray]] = {"video": [], "audio": [], "ids": []}
    begun = time.monotonic()
    parts = [range(TRAIN_SEED + first, TRAIN_SEED + first + batch) for first in range(0, count, batch)]
    for seeds, world in zip(parts, _rendered(parts, seconds, workers), strict=True):
        pixels, sound = encoders.to_device(*world)
        rows["video"].append(np.asarray(codecs.encode_video(pixels), np.float16))
        rows["audio"].append(np.asarray(codecs.encode_sound(sound), np.float16))
        rows["ids"].append(np.stack([prompt_ids(seed) for seed in seeds]))
        first = seeds.start - TRAIN_SEED
        if first % (50 * batch) == 0:
            log.info("%d/%d clips, %.0f s", first, count, time.monotonic() - begun)
    with replacing(path) as new:
        save_file({name: np.concatenate(parts) for name, parts in rows.items()}, new)


def _rendered(parts: list[range], seconds: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    render = partial(encoders.render_worlds, seconds=seconds)
    if workers == 1:
        yield from map(render, parts)
        return
    # Fresh processes: a copy of this one would have its threads' locks, and the device.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(render, parts)


def prompt_of(seed: int) -> str:
    """Word a prompt for the world of a seed."""
    return physics.prompt_of(physics.sample_world(seed), np.random.default_rng([seed, 3]))


def prompt_ids(seed: int) -> np.ndarray:
    """Word a prompt for the world of a seed and tokenise it."""
    return words.tokenise(WORDS_CONFIG, prompt_of(seed))[0]


def prompts(count: int) -> np.ndarray:
    """Return the prompts of the first `count` training worlds, ids [count, X], as `write` puts them beside clips."""
    return np.stack([prompt_ids(TRAIN_SEED + number) for number in range(count)])


def read(path: Path) -> dict[str, np.ndarray]:
    """Read what `write` wrote.

    Raises:
        ValueError: If the file is missing.
    """
    if not path.exists():
        raise ValueError(f"{path}: no latents; python -m experiments.chime.encode_clips writes them")
    return load_file(path)
