"""Streams that are given something: a clip to go on from, a sound to move to, a picture to ring to.

Truth is rendered for each prompt. Then
  continued      3 s of it are the past of a stream that goes on for 5 s: are number, colours and pitches kept, and does
                 each ball fly on across the border (its velocity in box units per second, before and after it)?
  sound-driven   all of its sound is given: does an impact fall on each tone (`recall`)?
  picture-driven all of its picture is given: does a tone fall on each impact (`recall`)?
with what the rendered world itself does beside it.

    python -m experiments.chime.given --json out/given.json

Hardware: two CPU cores, about two minutes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from experiments import mains
from experiments.chime import metrics, world
from experiments.chime.evaluate import SHIPPED, media_of, render, render_for_codecs, scenes
from experiments.chime.prompts import parse, sample_prompts
from experiments.chime.track import Tracks
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config
from omniforcing_jax.stream.conditioning.condition import Condition
from omniforcing_jax.stream.start import open_stream

PAST, NEW = 3, 5  # seconds
FLIGHT = 7  # frames on either side of the border that a velocity is fitted to
FEWEST = 5  # of them in which the ball must be seen
CLEAR = world.RADIUS + 0.03  # a ball that comes nearer to a surface than this may bounce


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Give streams a past, a sound or a picture, and judge what they make of it."""

    count: int = 16
    """Streams of each kind."""
    weights: Path = SHIPPED / "student"
    """Folder of the student's weights."""
    seed: int = 0
    """Of prompts, worlds and noise."""
    json: Path | None = None
    """Where to write the figures."""


def velocity(
    tracks: Tracks, colour: int, frames: Sequence[int]
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]] | None:
    """Fit a ball's velocity in some frames, gravity taken out, at the middle of them; None if it bounces or hides.

    Returns:
        Velocity, and place there.
    """
    centres = tracks.centres[list(frames), colour]
    seen = np.isfinite(centres[:, 0])
    if seen.sum() < FEWEST:
        return None
    x, y = centres[seen].T
    if min(x.min(), (1 - x).min(), y.min()) < CLEAR:
        return None
    t = np.asarray(frames)[seen] / world.FRAME_RATE
    middle = float(np.mean(frames)) / world.FRAME_RATE
    y = y + world.GRAVITY / 2 * (t - middle) ** 2
    (speed_x, place_x), (speed_y, place_y) = (np.polyfit(t - middle, q, 1) for q in (x, y))
    return np.array([speed_x, speed_y]), np.array([place_x, place_y])


def across(clips: Sequence[metrics.Clip]) -> dict[str, float | int | None]:
    """Compare velocities before and after the border of all balls that can be followed across it."""
    border = 1 + PAST * world.FRAME_RATE
    gap = FLIGHT / world.FRAME_RATE
    changes, turned, jumps = [], [], []
    for clip in clips:
        for colour in clip.picture.tracks.colours():
            before = velocity(clip.picture.tracks, colour, range(border - FLIGHT, border))
            after = velocity(clip.picture.tracks, colour, range(border, border + FLIGHT))
            if before is None or after is None:
                continue
            expected = before[0] - [0.0, world.GRAVITY * gap]
            changes.append(after[0] - expected)
            turned.append(after[0][0] * before[0][0] < 0)
            jumps.append(np.linalg.norm(after[1] - before[1] - gap * (before[0] + after[0]) / 2))
    if not changes:
        return {"balls": 0, "change_x": None, "change_y": None, "turned": None, "jump": None}
    change_x, change_y = np.median(np.abs(changes), axis=0).tolist()
    return {
        "balls": len(changes),
        "change_x": change_x,
        "change_y": change_y,
        "turned": float(np.mean(turned)),
        "jump": float(np.median(jumps)),
    }


def continued(pipeline: Pipeline, prompts: Sequence[str], arguments: Arguments) -> dict[str, Any]:
    """Go on from rendered clips."""
    made, real = [], []
    for i, (prompt, scene) in enumerate(zip(prompts, scenes(list(prompts), arguments.seed), strict=True)):
        video, sound, _ = render_for_codecs(scene, PAST)
        start = Condition(picture=video, sound=sound)
        stream = open_stream(pipeline, prompt, seconds=PAST + NEW, seed=arguments.seed + i, start=start)
        made.append(metrics.perceive(media_of(list(stream)), parse(prompt)))
        real.append(metrics.perceive(render(scene, PAST + NEW), parse(prompt)))
    windows = [(float(PAST), float(PAST + NEW))] * len(prompts)
    return {
        name: {**metrics.adherence(clips, windows), **metrics.synchrony(clips, windows), **across(clips)}
        for name, clips in (("stream", made), ("truth", real))
    }


def driven(pipeline: Pipeline, prompts: Sequence[str], arguments: Arguments, by: str) -> dict[str, Any]:
    """Make pictures to rendered sounds, or sounds to rendered pictures; what is given is judged as it was given."""
    clips = []
    for i, (prompt, scene) in enumerate(zip(prompts, scenes(list(prompts), arguments.seed), strict=True)):
        video, sound, _ = render_for_codecs(scene, NEW)
        drive = Condition(sound=sound) if by == "sound" else Condition(picture=video)
        stream = open_stream(pipeline, prompt, seconds=NEW, seed=arguments.seed + i, drive=drive)
        made, given = (metrics.perceive(x, parse(prompt)) for x in (media_of(list(stream)), render(scene, NEW)))
        clips.append(replace(made, sound=given.sound) if by == "sound" else replace(made, picture=given.picture))
    figures = metrics.judge(clips)
    names = ("sync_precision", "sync_recall") if by == "sound" else ("sync_recall", "sync_precision")
    return {
        "recall": figures[names[0]],
        "precision": figures[names[1]],
        "sync_ms_p50": figures["sync_ms_p50"],
        **{name: figures[name] for name in ("count_accuracy", "colour_accuracy", "pitch_accuracy")},
    }


def main(arguments: Arguments) -> None:
    """Print and write the figures; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with mains.refusing(arguments.json):
        pipeline = load_pipeline(arguments.weights, read_pipeline_config(arguments.weights))
        prompts = sample_prompts(arguments.count, arguments.seed)
        figures = {
            "continued": continued(pipeline, prompts, arguments),
            "sound_driven": driven(pipeline, prompts, arguments, "sound"),
            "picture_driven": driven(pipeline, prompts, arguments, "picture"),
        }
    print(json.dumps(figures, indent=2))
    mains.keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
