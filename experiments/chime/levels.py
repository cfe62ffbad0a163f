"""At which noise levels is a clip decided, and how well does a teacher decide?

Clips that no training saw are rendered, noised to a level and brought back by the teacher. From level 1 that is
sampling itself. What is lost from one level on, but not from the next lower one, is lost by the steps between both.

Hardware: two CPU cores, half a minute per level and 20 steps.

    python -m experiments.chime.levels --sigmas 0.5 0.7 0.85 0.95 1 --steps 20 --guidance 1
    python -m experiments.chime.levels --sigmas 1 --steps 60 --guidance 3 --renewal 1
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.judge import sources
from experiments.chime.judge.sources import BATCH, load
from experiments.chime.world import encoders, latents
from experiments.chime.world.clips import HELD_OUT_SEED
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.film import join_film
from omniforcing_jax.chime.prompts import parse
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.sample import clip
from omniforcing_jax.schedule import add_noise, fresh_shares
from omniforcing_jax.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Arguments(sources.SampleFlags):
    """Bring noised truth back and judge it."""

    sigmas: tuple[float, ...] = (0.5, 0.7, 0.85, 0.95, 1.0)
    """Noise levels to begin at."""
    count: int = 16
    """Clips, a multiple of 8."""
    steps: int = 20
    """Steps of the whole schedule, of which those below the level are taken."""
    guidance: float = 1.0
    renewal: float = 0.0
    """Share of fresh noise in each step: 0 makes Euler steps, 1 those of a diffusion run backwards."""
    weights: Path = CHIME_WEIGHTS / "teacher"
    """Weights folder of the teacher."""


def truth(count: int, seconds: int) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Encode held-out worlds: their prompts, and tokens of both streams."""
    codecs, seeds = encoders.load_encoders(), range(HELD_OUT_SEED, HELD_OUT_SEED + count)
    prompts = [latents.prompt_of(seed) for seed in seeds]
    video, audio = [], []
    for first in range(0, count, BATCH):
        pixels, sound = encoders.render_clips(seeds[first : first + BATCH], seconds)
        encoded = np.asarray(codecs.encode_video(pixels))
        video.append(encoded.reshape(len(encoded), -1, encoded.shape[-1]))
        audio.append(np.asarray(codecs.encode_sound(sound)))
    return prompts, (np.concatenate(video), np.concatenate(audio))


def bring_back(
    pipeline: Pipeline, prompts: list[str], clean: tuple[np.ndarray, np.ndarray], sigma: float, arguments: Arguments
) -> list[metrics.Perceived]:
    """Noise one batch of clips to a level, denoise, decode and judge."""
    request = sources.clip_request(prompts, arguments)
    plan = clip.plan_clip(pipeline, request)
    levels = (sigma, *(level for level in plan.sigmas if level < sigma - 1e-3))
    shares = tuple(fresh_shares(levels, arguments.renewal).tolist()) if arguments.renewal else None
    key = jax.random.key(arguments.seed)
    noise = clip.clip_noise(key, config=plan.config.model, rows=len(prompts), tokens=plan.tokens)
    video, audio = (
        add_noise(jnp.asarray(x, jnp.float32), own, jnp.float32(sigma)) for x, own in zip(clean, noise, strict=True)
    )
    below = plan._replace(sigmas=levels, shares=shares)
    chunks = clip.sample_planned(pipeline, below, start=Streams(video, audio))
    return [metrics.perceive(join_film([chunk]), parse(prompt)) for chunk, prompt in zip(chunks, prompts, strict=True)]


def main(arguments: Arguments) -> None:
    """Print a line per level; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing():
        if arguments.count < BATCH or arguments.count % BATCH:
            raise ValueError(f"--count {arguments.count}: must be a multiple of {BATCH}")
        if bad := [sigma for sigma in arguments.sigmas if not 0 < sigma <= 1]:
            raise ValueError(f"--sigmas {bad[0]}: must be above 0 and at most 1")
        pipeline = load(arguments.weights)
        prompts, (video, audio) = truth(arguments.count, arguments.seconds)
        for sigma in arguments.sigmas:
            judged = []
            for first in range(0, arguments.count, BATCH):
                rows = slice(first, first + BATCH)
                judged += bring_back(pipeline, prompts[rows], (video[rows], audio[rows]), sigma, arguments)
            figures = metrics.judge_clips(judged)
            del figures["drift"]
            print(json.dumps({"sigma": sigma, **figures}), flush=True)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
