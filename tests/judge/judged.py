"""Rendered truth as the judge sees and hears it, and damages to it; no coder in between."""

import functools
from pathlib import Path

import av
import numpy as np

from experiments import judge_controls
from omniforcing_jax.chime import physics, render
from omniforcing_jax.judge import report
from omniforcing_jax.judge.media import Media
from omniforcing_jax.judge.picture import Watcher
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.judge.sound import RATE, Listener

FRAME_RATE = 24
SECONDS = 13


@functools.cache
def truth(seed=0):
    """Return 13 s and a frame of a world with two balls: picture, and sound at 16 kHz."""
    balls, frames = physics.sample_world(seed, balls=2), SECONDS * FRAME_RATE + 1
    return render.render_video(balls, frames), render.render_audio(balls, frames * RATE // FRAME_RATE, RATE)


def watch(video, rate=FRAME_RATE):
    watcher = Watcher()
    for i, frame in enumerate(video):
        watcher.see(av.VideoFrame.from_ndarray(frame, format="rgb24"), i / rate)
    return watcher.picture()


def listen(audio, start_s=0.0):
    listener = Listener(audio.shape[1])
    listener.hear(np.ascontiguousarray(audio.T, np.float32))
    return listener.sound(sample_rate=RATE, start_s=start_s)


def media(video=None, audio=None, rate=FRAME_RATE):
    return Media(
        path=Path("clip"),
        picture=None if video is None else watch(video, rate),
        sound=None if audio is None else listen(audio),
    )


@functools.cache
def seen():
    return watch(truth()[0])


@functools.cache
def heard():
    return listen(truth()[1])


def damaged(damage, **options):
    """Judge the truth after a damage of `experiments.judge_controls`, at the rate at which it was rendered here."""
    video, audio = truth()
    new_video, new_audio = damage((video, audio), **options)
    return Media(
        path=Path("clip"),
        picture=seen() if new_video is video else watch(new_video),
        sound=heard() if new_audio is audio else listen(new_audio),
    )


@functools.cache
def figures_of_truth():
    return report.judge_media(Media(path=Path("clip"), picture=seen(), sound=heard()), Blocks())


def moved(figures):
    """Names of the figures that differ from the truth's, as the experiment counts them."""
    return judge_controls.find(judge_controls.flatten(figures), judge_controls.flatten(figures_of_truth()))
