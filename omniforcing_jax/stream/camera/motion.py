"""From keys to poses: how a camera moves, frame by frame, and the text that says which keys are held.

    w-24,wd-48,none-24      forward for 24 frames, forward and to the right for 48, then no key for 24

    w s  forward, back          a d  left, right          i k  pitch up, down          j l  yaw left, right

A key that is newly pressed acts at once. All other changes are smoothed, over 0.45 s and, where no key is held, 1 s.

Source: JoyAI-Echo's EchoWM.
"""

import dataclasses
import math
import re

import numpy as np
from jaxtyping import Float

from omniforcing_jax.config import CameraMotion
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.strict_json import Config, require, shorten

KEYS = "wsadikjl"
NO_KEYS = "none"
SEGMENT = re.compile(rf"(?P<keys>[{KEYS}]+|{NO_KEYS})-(?P<frames>[0-9]{{1,9}})")
RULE = f"must be KEYS-FRAMES segments, as w-24,wd-48,none-24: letters of {KEYS} or {NO_KEYS}, and at least 1 frame"
HELD_S, GLIDING_S = 0.45, 1.0  # time constants of the smoothing
Vector = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Config):
    """Keys that are held for some pixel frames.

    Attributes:
        keys: Letters of `KEYS`, each at most once, in its order; "" is none.
        frames: Pixel frames.
    """

    keys: str
    frames: int

    def __post_init__(self):
        require(self.keys == _in_order(self.keys), "keys", self.keys, f"must be letters of {KEYS}, in this order")
        require(self.frames >= 1, "frames", self.frames, "must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionState(Config):
    """Where a camera is, and how it moves.

    Attributes:
        rotation: Rows of the rotation from camera to world; x is right, y down, z forward.
        position: Where it stands, in the unit of the speeds.
        pitch: Radians, up is positive.
        velocity: Forward, right, yaw and pitch, per frame.
        keys: Keys of the frame before.
    """

    rotation: tuple[Vector, Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    position: Vector = (0.0, 0.0, 0.0)
    pitch: float = 0.0
    velocity: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    keys: str = ""


def parse_camera(text: str) -> tuple[Segment, ...]:
    """Read camera keys, as `w-24,wd-48,none-24`; case and white space do not count.

    Raises:
        ValueError: In one line with the segment at fault.
    """
    segments = []
    for part in re.sub(r"\s", "", text).lower().replace("，", ",").split(","):
        found = SEGMENT.fullmatch(part)
        if found is None or int(found["frames"]) < 1:
            raise ValueError(f"camera={shorten(text)}: {shorten(part)} is no segment, {RULE}")
        keys = "" if found["keys"] == NO_KEYS else _in_order(found["keys"])
        segments.append(Segment(keys=keys, frames=int(found["frames"])))
    return tuple(segments)


def _in_order(keys: str) -> str:
    return "".join(key for key in KEYS if key in keys)


def move(motion: CameraMotion, state: MotionState, keys: str) -> MotionState:
    """Move a camera by one pixel frame with these keys held."""
    velocity = _velocity(motion, state, keys)
    limit = math.radians(motion.tilt_limit_degrees)
    pitch = min(max(state.pitch + velocity[3], -limit), limit)
    rotation = _about_y(velocity[2]) @ np.array(state.rotation) @ _about_x(pitch - state.pitch)
    step = _on_ground(rotation[:, 2]) * velocity[0] + _on_ground(rotation[:, 0]) * velocity[1]
    rows = [tuple(row) for row in rotation.tolist()]
    return MotionState(
        rotation=(rows[0], rows[1], rows[2]),
        position=tuple((np.array(state.position) + step).tolist()),
        pitch=pitch,
        velocity=velocity,
        keys=keys,
    )


def _velocity(motion: CameraMotion, state: MotionState, keys: str) -> tuple[float, float, float, float]:
    """Return the velocity of the next frame: the keys' own, or on the way there."""
    turn, tilt = math.radians(motion.turn_degrees), math.radians(motion.tilt_degrees)
    pairs = (("w", "s", motion.speed), ("d", "a", motion.speed), ("l", "j", turn), ("i", "k", tilt))
    target = [((plus in keys) - (minus in keys)) * most for plus, minus, most in pairs]
    share = 1.0
    if set(keys) <= set(state.keys):
        share -= math.exp(-1 / FRAME_RATE / (HELD_S if any(target) else GLIDING_S))
    forward, right, yaw, pitch = (old + (new - old) * share for old, new in zip(state.velocity, target, strict=True))
    return forward, right, yaw, pitch


def pose_of(state: MotionState, motion: CameraMotion) -> Float[np.ndarray, "4 4"]:
    """Return the pose that the network gets: camera to world, translations in its unit."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = state.rotation, np.array(state.position) / motion.unit
    return pose


def _about_y(angle: float) -> Float[np.ndarray, "3 3"]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_x(angle: float) -> Float[np.ndarray, "3 3"]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _on_ground(axis: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    """Return the direction of an axis without its height; motion stays level."""
    flat = np.array([axis[0], 0.0, axis[2]])
    return flat / max(float(np.linalg.norm(flat)), np.finfo(np.float64).tiny)
