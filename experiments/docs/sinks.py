"""Idea 2: what audio sinks give the first block's queries, and where identity rotation places them."""

import math

import numpy as np

from experiments.docs.facts import model, sampler
from experiments.docs.svg import MARGIN, Drawing
from omniforcing_jax.layout import audio_seconds
from omniforcing_jax.nn.rope import angles, frequencies

DIALS = 5  # times on the axis that get a dial
TOP = 232


def draw() -> Drawing:
    """Draw the sequence with its sinks, and the rotations of keys over time."""
    picture = Drawing(960, 490, "Audio sink tokens with identity rotation")
    _sequence(picture)
    _axis(picture)
    _words(picture)
    return picture


def _sequence(picture: Drawing) -> None:
    """Draw sinks in front of the audio, and which of it block 0 sees."""
    sinks, first = model().sinks, sampler().layout.first_a
    picture.text(MARGIN, 40, "The audio sequence: sinks in front of block 0", size=16, bold=1)
    x, y, cell = MARGIN, 62, 34
    for i in range(sinks):
        picture.rect(x + i * cell, y, cell - 3, cell, "sink", radius=4)
        picture.text(x + i * cell + 15, y + 22, "s", anchor="middle", fill="paper", bold=1)
    at = x + sinks * cell + 10
    picture.rect(at, y, cell * first - 3, cell, "audio-pale", radius=4)
    picture.text(at + 15, y + 22, "0", anchor="middle", bold=1)
    later = at + first * cell + 10
    for k in (1, 2):
        width = 250
        picture.rect(later, y, width, cell, "audio" if k % 2 else "audio-pale", radius=4)
        words = f"block {k}: {sampler().layout.step_a} audio latents"
        picture.text(later + width / 2, y + 22, words, anchor="middle", fill="paper" if k % 2 else "ink")
        later += width + 10
    _keys_of_block_0(picture, x, at + cell * first - 3, y + cell + 8, sinks, first)


def _keys_of_block_0(picture: Drawing, left: float, right: float, y: float, sinks: int, first: int) -> None:
    picture.line([(left, y), (left, y + 6), (right, y + 6), (right, y)], "soft")
    lines = (
        f"Audio and video of block 0 see {sinks} + {first} audio keys. Without sinks there would be {first}:",
        "its softmax weight would be 1 whatever the query asks, and no gradient would reach the scores.",
    )
    picture.lines(left, y + 28, lines)


def _axis(picture: Drawing) -> None:
    """Draw the angle of the slowest and of a faster frequency at some times; a sink has that of the middle."""
    longest = model().rotary.max_seconds
    grid = frequencies(model().rotary, 1, model().audio.width)
    picture.text(MARGIN, TOP - 12, "Where identity rotation places a sink", size=16, bold=1)
    left, right, y = MARGIN + 60, 960 - MARGIN - 60, TOP + 116
    picture.line([(left - 30, y), (right + 36, y)], "soft", arrow=1)
    for i in range(DIALS):
        second = longest * i / (DIALS - 1)
        x = left + (right - left) * i / (DIALS - 1)
        is_middle = second == longest / 2
        picture.line([(x, y - 4), (x, y + 4)], "soft")
        picture.text(x, y + 22, f"{second:g} s", anchor="middle", bold=int(is_middle))
        _dial(picture, x, y - 62, grid[0], second / longest, "sink" if is_middle else "audio")
    picture.text(left + (right - left) / 2, y + 42, "sinks: cos 1, sin 0", anchor="middle", fill="sink", bold=1)


def _dial(picture: Drawing, x: float, y: float, frequency: float, fraction: float, fill: str) -> None:
    """Draw the rotation of one pair of channels as the hand of a dial; zero points up."""
    phases = angles(np.array([frequency]), np.array([fraction]))
    cos, sin = float(phases.cos[0, 0]), float(phases.sin[0, 0])
    picture.circle(x, y, 38, "faint", stroke="rule", thick=1.5)
    picture.line([(x, y), (x + 32 * sin, y - 32 * cos)], fill, thick=3.5)
    picture.circle(x, y, 4, fill)
    degrees = round(math.degrees(math.atan2(sin, cos)))
    picture.text(x, y + 26, f"{degrees}°", size=11, anchor="middle", fill="soft")


def _words(picture: Drawing) -> None:
    longest, first = model().rotary.max_seconds, float(audio_seconds(0, 1)[0])
    lines = (
        f"Dials show the slowest pair of channels for keys at these times; block 0's audio is at {first:g} s.",
        f"Not rotated is not without place: a sink is exactly where a key at {longest / 2:g} s would be.",
        "Past the trained horizon it moves along with the stream.",
    )
    picture.lines(MARGIN, TOP + 192, lines)
