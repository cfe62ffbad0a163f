"""One tiny pipeline for everything above the network: its compiled programs are shared by all tests of a process."""

import atexit
import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from random_weights import fill

from omniforcing_jax.model.transformer import list_layers
from omniforcing_jax.pipeline.pipeline import Pipeline, abstract_pipeline
from omniforcing_jax.pipeline.presets import TINY_CLIP, TINY_STREAM
from omniforcing_jax.pipeline.weights_folder import save_pipeline
from omniforcing_jax.rollout import StaticConfig, make_prompt_kv

PROMPT = "a red ball and a blue ball"
GRID = TINY_STREAM.grid(*TINY_STREAM.resolution)
TOKENS = GRID[0] * GRID[1]
STATIC = StaticConfig(TINY_STREAM.model, TINY_STREAM.sampler, GRID)


@cache
def student() -> Pipeline:
    """The student, its layers stacked."""
    return fill(abstract_pipeline(TINY_STREAM))


@cache
def listed() -> Pipeline:
    """The student with a list of layers, as a GPU loads it."""
    return dataclasses.replace(student(), transformer=list_layers(student().transformer))


@cache
def teacher() -> Pipeline:
    return fill(abstract_pipeline(TINY_CLIP))


@cache
def folders() -> Path:
    """A folder with `student` and `teacher`, which share their codecs."""
    root = Path(tempfile.mkdtemp(prefix="tiny_weights"))
    atexit.register(shutil.rmtree, root)
    shared = {name: f"../student/{name}" for name in ("video_vae", "audio_vae", "vocoder", "text")}
    save_pipeline(root / "student", student())
    save_pipeline(root / "teacher", teacher(), shared=shared)
    return root


def text(static=STATIC, params=None, rows=1):
    """Text keys and values of random contexts with a padding mask, as long as those of words."""
    rng = np.random.default_rng(3)
    widths = [static.model.caption_channels or s.width for s in (static.model.video, static.model.audio)]
    video, audio = (jnp.asarray(rng.normal(size=(rows, 16, w)), jnp.float32) for w in widths)
    mask = np.ones((rows, 16), np.int32)
    mask[0, :5] = 0
    return make_prompt_kv(params or student().transformer, video, audio, jnp.asarray(mask), static=static)


def keys(rows: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), 2)[:rows]
