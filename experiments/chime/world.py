"""The small world: coloured balls that bounce in a box for ever, and every impact rings a tone.

Physics in closed form, the exact impacts, and the renderers of picture and sound, all in NumPy and deterministic.
What a prompt says about a world is in `prompts.py`, how a clip is judged in `detect.py` and `metrics.py`.

Space is the unit box, x to the right, y up; frame n shows the instant n / 24 s. Sound is phase-locked to absolute time:
a colour's tone is one steady carrier, and an impact opens its envelope, so equal envelopes give equal mel rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from experiments.chime.prompts import COLOURS, phrase

FRAME_RATE = 24
SAMPLE_RATE = 24_000
GRAVITY = 3.0
RADIUS = 0.10
APEX = (0.30, 0.70)  # highest centre above its lowest, in box units
DRIFT = (0.15, 0.45)  # horizontal speed, in box units per second

PALETTE = np.array(
    [[235, 45, 60], [255, 215, 50], [40, 190, 70], [70, 220, 240], [40, 60, 235], [205, 70, 225]], dtype=np.uint8
)
BACKGROUND = np.array([14, 16, 24], dtype=np.uint8)
BORDER = np.array([44, 48, 62], dtype=np.uint8)  # a line one 64th of the picture wide, along floor, walls and ceiling

PITCHES = (600, 700, 800, 900, 1000, 1100)  # Hz by colour, less than an octave; multiples of the mel rows per second
PARTIALS = (1.0, 0.4, 0.2)
ATTACK = 0.002
DECAY = 0.11
RING = DECAY * math.log(1e4)  # seconds until a tone has fallen by 80 dB, where it is cut


Surface = Literal["floor", "left", "right"]


@dataclass(frozen=True, kw_only=True)
class World:
    """The balls, one entry each, from the back of the picture to the front."""

    colour: Int[np.ndarray, " n"]  # index into COLOURS, PALETTE and PITCHES
    bounce_speed: Float[np.ndarray, " n"]  # vertical speed at the floor
    bounce_phase: Float[np.ndarray, " n"]  # seconds since the last floor impact at t = 0
    start: Float[np.ndarray, " n"]  # distance of the centre from the left contact at t = 0, unfolded to [0, 2 * span)
    drift: Float[np.ndarray, " n"]  # horizontal speed along the unfolded path, > 0


@dataclass(frozen=True, kw_only=True)
class Impact:
    """One touch of a ball and a surface."""

    time: float  # seconds
    ball: int
    colour: int
    speed: float  # normal to the surface, in box units per second
    position: tuple[float, float]  # of the centre
    surface: Surface


SPAN = 1 - 2 * RADIUS  # what a centre can travel from wall to wall


def sample_world(seed: int | Sequence[int], balls: int | None = None, colours: Sequence[str] | None = None) -> World:
    """Draw a world; the same arguments give the same world.

    Args:
        seed: whatever NumPy's generator takes.
        balls: how many, 1 to 3; drawn if neither this nor `colours` is given.
        colours: names of the balls' colours, distinct; who is in front of whom is drawn all the same.

    Raises:
        ValueError: more than three balls, a colour twice, an unknown colour, or `balls` contradicting `colours`.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(COLOURS))[: balls or rng.integers(1, 4)]
    if colours is not None:
        if unknown := set(colours) - set(COLOURS):
            raise ValueError(f"colours: unknown {sorted(unknown)}, known are {COLOURS}")
        drawn = rng.permutation([COLOURS.index(colour) for colour in colours])
    n = len(drawn)
    if not 1 <= n <= 3 or len(set(drawn.tolist())) != n or (balls is not None and balls != n):
        raise ValueError(f"balls={balls}, colours={colours}: need 1 to 3 balls of distinct colours")
    speed = np.sqrt(2 * GRAVITY * rng.uniform(*APEX, n))
    return World(
        colour=drawn,
        bounce_speed=speed,
        bounce_phase=rng.uniform(0, 1, n) * 2 * speed / GRAVITY,
        start=rng.uniform(0, 2 * SPAN, n),
        drift=rng.uniform(*DRIFT, n),
    )


def prompt_of(world: World, rng: np.random.Generator) -> str:
    """Word a prompt that this world fulfils."""
    return phrase([COLOURS[c] for c in world.colour], rng)


def positions(world: World, times: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t n 2"]:
    """Return the centres (x, y) at any times, in closed form: a folded line across, a chain of parabolas up."""
    t = np.asarray(times, np.float64)[:, None]
    since = (t + world.bounce_phase) % (2 * world.bounce_speed / GRAVITY)
    y = RADIUS + since * (world.bounce_speed - GRAVITY / 2 * since)
    x = RADIUS + SPAN - np.abs((world.start + world.drift * t) % (2 * SPAN) - SPAN)
    return np.stack([x, y], axis=-1)


def _arrivals(first: float, period: float, seconds: float) -> list[float]:
    """Times first + k * period in (0, seconds), where `first` may be at or before zero."""
    start = math.floor(-first / period) + 1
    return [
        t for k in range(start, math.ceil((seconds - first) / period) + 1) if 0 < (t := first + k * period) < seconds
    ]


def impacts(world: World, seconds: float) -> list[Impact]:
    """Return every impact in (0, seconds), exact, in order of time."""
    found: list[tuple[float, int, Surface, float]] = []
    for ball in range(len(world.colour)):
        up, phase = float(world.bounce_speed[ball]), float(world.bounce_phase[ball])
        start, drift = float(world.start[ball]), float(world.drift[ball])
        surfaces: tuple[tuple[Surface, float, float, float], ...] = (
            ("floor", up, -phase, 2 * up / GRAVITY),
            ("left", drift, -start / drift, 2 * SPAN / drift),
            ("right", drift, (SPAN - start) / drift, 2 * SPAN / drift),
        )
        for surface, speed, first, period in surfaces:
            for t in _arrivals(first, period, seconds):
                found.append((t, ball, surface, speed))
    found.sort()
    centres = positions(world, np.array([t for t, *_ in found]))
    return [
        Impact(
            time=t,
            ball=ball,
            colour=int(world.colour[ball]),
            speed=speed,
            position=(float(centres[i, ball, 0]), float(centres[i, ball, 1])),
            surface=surface,
        )
        for i, (t, ball, surface, speed) in enumerate(found)
    ]


def _windows(
    centres: Float[np.ndarray, "f 2"], size: int, grow: float
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


def backdrop(size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Return the picture without balls: a dark plane in a thin frame."""
    line = max(1, size // 64)
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = BORDER
    picture[line:-line, line:-line] = BACKGROUND
    return picture


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
    world: World, frames: int, size: int = 64, first_frame: int = 0, dilate: float = 0.0
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
        angle = impact.position[0] * math.pi / 2
        gains = 0.3 * math.sqrt(impact.speed / 2) * np.array([math.cos(angle), math.sin(angle)], np.float32)
        loudness[impact.colour, low:high] += envelope[:, None] * gains.astype(np.float32)
    sound = np.zeros((samples, 2), np.float32)
    for colour in sorted(world.colour.tolist()):
        sound += _carrier(PITCHES[colour], samples, rate, first_sample)[:, None] * loudness[colour]
    return sound
