"""The balls of the small world: they bounce in a box for ever, in closed form, and every impact is known exactly.

All in NumPy and deterministic: the same seed gives the same world. `render.py` draws it and rings it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from omniforcing_jax.chime.box import GRAVITY, RADIUS
from omniforcing_jax.chime.prompts import COLOURS, phrase

APEX = (0.30, 0.70)  # highest centre above its lowest, in box units
DRIFT = (0.15, 0.45)  # horizontal speed, in box units per second
SPAN = 1 - 2 * RADIUS  # what a centre can travel from wall to wall

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


def sample_world(seed: int | Sequence[int], balls: int | None = None, colours: Sequence[str] | None = None) -> World:
    """Draw a world; the same arguments give the same world.

    Args:
        seed: Whatever NumPy's generator takes.
        balls: How many, 1 to 3; drawn if neither this nor `colours` is given.
        colours: Names of the balls' colours, distinct; who is in front of whom is drawn all the same.

    Raises:
        ValueError: More than three balls, a colour twice, an unknown colour, or `balls` contradicting `colours`.
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


def _arrivals(first: float, period: float, seconds: int | float) -> list[float]:
    """Times first + k * period in (0, seconds), where `first` may be at or before zero."""
    start = math.floor(-first / period) + 1
    return [
        t for k in range(start, math.ceil((seconds - first) / period) + 1) if 0 < (t := first + k * period) < seconds
    ]


def impacts(world: World, seconds: int | float) -> list[Impact]:
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
