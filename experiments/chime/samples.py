"""Clips of a student while it trains: a hook for the loop that streams a few prompts and draws their contact sheets."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.chime.evaluate import media_of
from experiments.chime.sheet import write_sheet
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.stream.start import open_stream

PROMPTS = ("a red ball", "a green ball and a purple ball", "three bouncing balls: red, cyan and blue")


def sampler(
    folder: Path,
    pipeline: Pipeline,
    params_of: Callable[[Any], Transformer],
    *,
    prompts: tuple[str, ...] = PROMPTS,
    seconds: int = 5,
    seed: int = 1,
) -> Callable[[int, Any], None]:
    """Make the call of a `loop.Hook`: `step_000500_0.mp4` and `.png` for each prompt, with the same noise every time.

    Args:
      folder: clips go here; made when the first ones are.
      pipeline: a student; its transformer is replaced by the one in training.
      params_of: takes the weights out of the trainer's state, such as its average.
      prompts: what to show.
      seconds: length of a clip.
      seed: of the noise.
    """

    def call(done: int, state: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = dataclasses.replace(pipeline, transformer=params_of(state))
        for index, prompt in enumerate(prompts):
            video, audio, rate = media_of(list(open_stream(now, prompt, seconds, seed)))
            clip = folder / f"step_{done:06}_{index}.mp4"
            write_mp4(clip, video, audio, frame_rate=FRAME_RATE, sample_rate=rate)
            write_sheet(clip.with_suffix(".png"), video, audio, rate, f"step {done}: {prompt}")

    return call
