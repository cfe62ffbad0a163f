"""Picture and sound of a world, in NumPy: antialiased discs, and a tone for every impact.

Sound is phase-locked to absolute time: a colour's tone is one steady carrier, and an impact opens its envelope. Equal
envelopes therefore give equal mel rows.
"""

import math

import numpy as np
from jaxtyping import Float, Int, UInt8

from omniforcing_jax.chime.box import DECAY, PALETTE, PITCHES, RADIUS, backdrop, pan
from omniforcing_jax.chime.physics import World, impacts, positions
from omniforcing_jax.chime.prompts import COLOURS
from omniforcing_jax.layout import FRAME_RATE

SAMPLE_RATE = 24_000  # samples per second
PARTIALS = (1.0, 0.4, 0.2)  # amplitudes of a tone's harmonics
ATTACK = 0.002  # seconds until a tone is at its loudest
RING = DECAY * math.log(1e4)  # seconds until a tone has fallen by 80 dB, where it is cut


def _windows(
    centres: Float[np.ndarray, "f 2"], size: int, grow: int | float
) -> tuple[Int[np.ndarray, "f w"], Int[np.ndarray, "f w"], Float[np.ndarray, "f w w"]]:
    """Rows, columns and coverage of the square of pixels around one disc in each frame.

    A pixel's coverage is the length of the radius that reaches into it, clipped to [0, 1]: exact for a straight edge
    through the pixel, within a hundredth for these radii.
    """
    radius = RADIUS * size + grow
    width = min(size, math.ceil(2 * radius) + 2)
    x, y = centres[:, 0] * size - 0.5, (1 - centres[:, 1]) * size - 0.5  # in pixel centres, rows downwards
    offsets = np.arange(width)
    rows, columns = (
        np.clip(np.ceil(c - radius - 0.5).astype(np.int64), 0, size - width)[:, None] + offsets for c in (y, x)
    )
    dy = (rows - y[:, None]).astype(np.float32)
    dx = (columns - x[:, None]).astype(np.float32)
    distance = np.sqrt(dy[:, :, None] ** 2 + dx[:, None, :] ** 2)
    return rows, columns, np.clip(np.float32(radius + 0.5) - distance, 0, 1)


def _frame_times(frames: int, first_frame: int) -> Float[np.ndarray, " f"]:
    return np.arange(first_frame, first_frame + frames) / FRAME_RATE


def render_video(world: World, frames: int, size: int = 64, first_frame: int = 0) -> UInt8[np.ndarray, "f s s 3"]:
    """Draw antialiased discs over the backdrop; frame i is the same whichever frame a call begins at."""
    canvas = np.broadcast_to(backdrop(size).reshape(-1, 3), (frames, size * size, 3)).copy()
    centres = positions(world, _frame_times(frames, first_frame))
    index = np.arange(frames)[:, None]
    for ball, colour in enumerate(world.colour):
        rows, columns, coverage = _windows(centres[:, ball], size, 0.0)
        pixels = (rows[:, :, None] * size + columns[:, None, :]).reshape(frames, -1)
        behind = canvas[index, pixels].astype(np.float32)
        alpha = coverage.reshape(frames, -1, 1)
        blend = behind + alpha * (PALETTE[colour].astype(np.float32) - behind)
        canvas[index, pixels] = (blend + np.float32(0.5)).astype(np.uint8)
    return canvas.reshape(frames, size, size, 3)


def foreground_mask(
    world: World, frames: int, size: int = 64, first_frame: int = 0, dilate: int | float = 0.0
) -> Float[np.ndarray, "f s s"]:
    """Return how much of each pixel any ball covers, in [0, 1], with radii grown by `dilate` pixels."""
    canvas = np.zeros((frames, size * size), np.float32)
    centres = positions(world, _frame_times(frames, first_frame))
    index = np.arange(frames)[:, None]
    for ball in range(len(world.colour)):
        rows, columns, coverage = _windows(centres[:, ball], size, dilate)
        pixels = (rows[:, :, None] * size + columns[:, None, :]).reshape(frames, -1)
        canvas[index, pixels] = np.maximum(canvas[index, pixels], coverage.reshape(frames, -1))
    return canvas.reshape(frames, size, size)


def _carrier(pitch: int, samples: int, rate: int, first_sample: int) -> Float[np.ndarray, " samples"]:
    """Return a pitch's steady tone, read from a table of its 10 ms period: exact at any hour."""
    period = rate // 100
    t = np.arange(period) / rate
    table = sum(a * np.sin(2 * np.pi * pitch * (p + 1) * t) for p, a in enumerate(PARTIALS))
    return np.resize(np.roll(np.asarray(table, np.float32), -(first_sample % period)), samples)


def _envelope(since: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return a tone's loudness by the seconds since its impact: linear attack, exponential decay, cut at -80 dB."""
    shape = np.minimum(since / ATTACK, 1) * np.exp(-since / DECAY)
    return np.where((since >= 0) & (since < RING), shape, 0).astype(np.float32)


def render_audio(
    world: World, samples: int, rate: int = SAMPLE_RATE, first_sample: int = 0
) -> Float[np.ndarray, "samples 2"]:
    """Ring every impact in stereo; sample i is the same whichever sample a call begins at.

    Amplitude is 0.3 at speed 2, by the square root of speed; panning is of constant power by the place of impact.
    `rate` must be a multiple of 100 Hz.
    """
    loudness = np.zeros((len(COLOURS), samples, 2), np.float32)
    begin = first_sample / rate
    for impact in impacts(world, begin + samples / rate):
        if impact.time <= begin - RING:
            continue
        low = max(0, math.floor(impact.time * rate) - first_sample)
        high = min(samples, math.ceil((impact.time + RING) * rate) - first_sample + 1)
        envelope = _envelope((np.arange(low, high) + first_sample) / rate - impact.time)
        gains = 0.3 * math.sqrt(impact.speed / 2) * pan(impact.position[0]).astype(np.float32)
        loudness[impact.colour, low:high] += envelope[:, None] * gains.astype(np.float32)
    sound = np.zeros((samples, 2), np.float32)
    for colour in sorted(world.colour.tolist()):
        sound += _carrier(PITCHES[colour], samples, rate, first_sample)[:, None] * loudness[colour]
    return sound
