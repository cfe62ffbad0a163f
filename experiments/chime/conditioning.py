"""Streams with conditioning: a clip to continue, a sound to make a picture to, a picture to make a sound to.

Truth is rendered for each prompt. There are three kinds of stream, each judged beside the rendered world itself:
  continued        3 s of truth are the past of a stream that goes on for 5 s. Are number, colours and pitches kept?
                   Does each ball fly on across the border (its velocity in box units per second, before and after)?
  sound_driven     all of the sound is truth. Does an impact fall on each tone (`recall`)?
  picture_driven   all of the picture is truth. Does a tone fall on each impact (`recall`)?

Hardware: two CPU cores, about two minutes.

    python -m experiments.chime.conditioning --json out/conditioning.json
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.chime.judge.sources import load, render_film, render_for_codecs, scenes
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.box import GRAVITY, RADIUS
from omniforcing_jax.chime.film import join_film
from omniforcing_jax.chime.prompts import parse, sample_prompts
from omniforcing_jax.chime.track import Tracks
from omniforcing_jax.io import machine
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.stream.conditioning.condition import Condition
from omniforcing_jax.stream.start import open_stream

PAST, NEW = 3, 5  # seconds
FLIGHT = 7  # frames on either side of the border that a velocity is fitted to
FEWEST = 5  # of them in which the ball must be seen
CLEAR = RADIUS + 0.03  # a ball that comes nearer to a surface than this may bounce


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Judge streams with conditioning."""

    count: int = 16
    """Streams of each kind."""
    weights: Path = CHIME_WEIGHTS / "student"
    """Weights folder of the student."""
    seed: int = 0
    """Random seed of prompts, worlds and noise."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


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
    t = np.asarray(frames)[seen] / FRAME_RATE
    middle = float(np.mean(frames)) / FRAME_RATE
    y = y + GRAVITY / 2 * (t - middle) ** 2
    (speed_x, place_x), (speed_y, place_y) = (np.polyfit(t - middle, q, 1) for q in (x, y))
    return np.array([speed_x, speed_y]), np.array([place_x, place_y])


def across(clips: Sequence[metrics.Perceived]) -> dict[str, float | int | None]:
    """Compare velocities before and after the border of all balls that can be followed across it."""
    border = 1 + PAST * FRAME_RATE
    gap = FLIGHT / FRAME_RATE
    changes, turned, jumps = [], [], []
    for clip in clips:
        for colour in clip.picture.tracks.colours():
            before = velocity(clip.picture.tracks, colour, range(border - FLIGHT, border))
            after = velocity(clip.picture.tracks, colour, range(border, border + FLIGHT))
            if before is None or after is None:
                continue
            expected = before[0] - [0.0, GRAVITY * gap]
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
        made.append(metrics.perceive(join_film(list(stream)), parse(prompt)))
        real.append(metrics.perceive(render_film(scene, PAST + NEW), parse(prompt)))
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
        made, given = (metrics.perceive(x, parse(prompt)) for x in (join_film(list(stream)), render_film(scene, NEW)))
        clips.append(replace(made, sound=given.sound) if by == "sound" else replace(made, picture=given.picture))
    figures = metrics.judge_clips(clips)
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
    with refusing(arguments.json):
        pipeline = load(arguments.weights)
        prompts = sample_prompts(arguments.count, arguments.seed)
        figures = {
            "continued": continued(pipeline, prompts, arguments),
            "sound_driven": driven(pipeline, prompts, arguments, "sound"),
            "picture_driven": driven(pipeline, prompts, arguments, "picture"),
        }
    print(json.dumps(figures, indent=2))
    keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
