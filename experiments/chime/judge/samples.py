"""Clips of a student while it trains: a hook for the loop that streams a few prompts and draws their contact sheets."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omniforcing_jax.chime.contact_sheet import write_contact_sheet
from omniforcing_jax.chime.film import join_film
from omniforcing_jax.chime.metrics import perceive
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.stream.mp4 import write_mp4
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.train.loop import Hook

PROMPTS = ("a red ball", "a green ball and a purple ball", "three bouncing balls: red, cyan and blue")


def hooks(
    folder: Path, every: int | None, config: PipelineConfig, params_of: Callable[[Any], Transformer]
) -> tuple[Hook, ...]:
    """Stream the student in training with the codecs that ship, every so many steps; None never.

    Args:
        folder: Of the run; clips go to its `samples`.
        every: In steps.
        config: What student it is.
        params_of: Takes the weights out of the trainer's state, such as its average.
    """
    if every is None:
        return ()
    return (Hook(every, sampler(folder / "samples", load_pipeline(CHIME_WEIGHTS / "student", config), params_of)),)


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
        folder: Clips go here; made when the first ones are.
        pipeline: a student; its transformer is replaced by the one in training.
        params_of: As for `hooks`.
        prompts: What to show.
        seconds: Length of a clip.
        seed: Random seed of the noise.
    """

    def call(done: int, state: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = dataclasses.replace(pipeline, transformer=params_of(state))
        for index, prompt in enumerate(prompts):
            film = join_film(list(open_stream(now, prompt, seconds, seed)))
            clip = folder / f"step_{done:06}_{index}.mp4"
            write_mp4(clip, film.video, film.audio, frame_rate=FRAME_RATE, sample_rate=film.sample_rate)
            write_contact_sheet(clip.with_suffix(".png"), film, perceive(film), f"step {done}: {prompt}")

    return call
