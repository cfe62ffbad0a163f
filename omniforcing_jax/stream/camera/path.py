"""The path of a stream's camera, block by block: what is left of it, where the camera is, and where it was.

A block needs the poses of its own latent frames, and of those that it still sees. Nothing later is known, so a path may
change at any block's border. All of it is host data, saved and forked with the stream.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from omniforcing_jax.config import CameraConfig, CameraMotion, SamplerConfig
from omniforcing_jax.layout import PIXELS_PER_LATENT
from omniforcing_jax.model.cache import Slots
from omniforcing_jax.model.cameras import Shots, cameras_of_block, lens_matrix
from omniforcing_jax.nn.camera import Cameras
from omniforcing_jax.stream.camera.motion import MotionState, Segment, move, parse_camera, pose_of
from omniforcing_jax.strict_json import Config

Pose = tuple[float, ...]  # the first three rows of a pose, row by row


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPoses(Config):
    """The poses of a block's latent frames."""

    block: int
    poses: tuple[Pose, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraPath(Config):
    """A camera on its way.

    Attributes:
        segments: Keys to come. After them the camera stands.
        state: Where it is, after the last frame of the blocks so far.
        seen: Poses of the blocks that a later one may still need.
    """

    segments: tuple[Segment, ...] = ()
    state: MotionState = MotionState()
    seen: tuple[BlockPoses, ...] = ()


def begin_path(camera: str | None) -> CameraPath:
    """Begin a path with camera keys, as `parse_camera` reads them; None stands still."""
    return CameraPath(segments=() if camera is None else parse_camera(camera))


def change_path(path: CameraPath, camera: str | None) -> CameraPath:
    """Replace what is left of a path; the camera goes on from where it is, at its speed."""
    return dataclasses.replace(path, segments=begin_path(camera).segments)


def advance_path(
    path: CameraPath, motion: CameraMotion, sampler: SamplerConfig, block: int, history: int = 0
) -> CameraPath:
    """Move the camera through a block. It must be the next one.

    Latent frame f shows the camera at pixel frame 8 f, and frame 0 the beginning of the path.

    Args:
        path: The path up to the block.
        motion: How keys move it.
        sampler: Says which blocks later ones see.
        block: The block.
        history: Blocks before the window that may be replayed, and keep their poses too.
    """
    span, poses, state, segments = sampler.layout.block(block), [], path.state, path.segments
    for frame in range(span.video_start, span.video_end):
        for _ in range(PIXELS_PER_LATENT if frame else 0):
            state, segments = _next_frame(motion, state, segments)
        poses.append(tuple(pose_of(state, motion)[:3].ravel().tolist()))
    oldest = block + 1 - sampler.past_blocks - history
    kept = [each for each in path.seen if each.block < max(1, sampler.pinned) or each.block >= oldest]
    return CameraPath(segments=segments, state=state, seen=(*kept, BlockPoses(block=block, poses=tuple(poses))))


def _next_frame(
    motion: CameraMotion, state: MotionState, segments: tuple[Segment, ...]
) -> tuple[MotionState, tuple[Segment, ...]]:
    """Move by one pixel frame; without keys to come the camera stands."""
    if not segments:
        return dataclasses.replace(state, velocity=(0.0,) * 4, keys=""), segments
    first, *rest = segments
    left = [dataclasses.replace(first, frames=first.frames - 1)] if first.frames > 1 else []
    return move(motion, state, first.keys), (*left, *rest)


def cameras_at(
    paths: Sequence[CameraPath],
    config: CameraConfig,
    sampler: SamplerConfig,
    slots: Slots,
    grid: tuple[int, int],
    block: int,
) -> Cameras:
    """Make the cameras of a block, and of what it sees, from the paths of all rows, or one for all of them."""
    lens = lens_matrix(config.motion.view_degrees, *grid)
    rows = [{each.block: _matrices(each.poses) for each in path.seen} for path in paths]
    shots = {}
    for k in rows[0]:
        poses = np.stack([row[k] for row in rows])
        shots[k] = Shots(poses, np.broadcast_to(lens, poses.shape))
    return cameras_of_block(sampler, slots, shots, block)


def _matrices(poses: Sequence[Pose]) -> Float[np.ndarray, "F 4 4"]:
    """Return poses as matrices."""
    rows = np.array(poses).reshape(-1, 3, 4)
    return np.concatenate([rows, np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(rows), 1, 4))], axis=1)
