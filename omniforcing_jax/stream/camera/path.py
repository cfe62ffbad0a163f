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
from omniforcing_jax.model.cameras import Shots, cameras_of_block, cameras_of_clip, lens_matrix
from omniforcing_jax.nn.camera import Cameras
from omniforcing_jax.rollout import BlockPositions, StaticConfig, block_positions
from omniforcing_jax.stream.camera.motion import MotionState, Segment, move, parse_camera, pose_of
from omniforcing_jax.strict_json import Config, require

Pose = tuple[float, ...]  # the first three rows of a pose, row by row
POSE = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPoses(Config):
    """The poses of a block's latent frames."""

    block: int
    poses: tuple[Pose, ...]

    def __post_init__(self):
        sizes = {len(pose) for pose in self.poses}
        require(sizes == {POSE}, "poses", sorted(sizes), f"must have {POSE} numbers each")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraReceipt:
    """What becomes of a change of camera keys.

    Attributes:
        block: First block that is made with them.
        second: Stream second at which it begins.
        frames: Pixel frames that the keys last; after them the camera stands.
    """

    block: int
    second: int
    frames: int


def begin_path(camera: str | None) -> CameraPath:
    """Begin a path with camera keys, as `parse_camera` reads them; None stands still."""
    return CameraPath(segments=() if camera is None else parse_camera(camera))


def change_path(path: CameraPath, camera: str | None) -> CameraPath:
    """Replace what is left of a path; the camera goes on from where it is, at its speed."""
    return dataclasses.replace(path, segments=begin_path(camera).segments)


def receipt_of(path: CameraPath, sampler: SamplerConfig, block: int) -> CameraReceipt:
    """Say what becomes of a path that was changed before a block."""
    frames = sum(segment.frames for segment in path.segments)
    return CameraReceipt(block=block, second=sampler.layout.start_seconds(block), frames=frames)


def advance_path(path: CameraPath, motion: CameraMotion, sampler: SamplerConfig, block: int) -> CameraPath:
    """Move the camera through a block. It must be the next one.

    Args:
        path: The path up to the block.
        motion: How keys move it.
        sampler: Says which blocks later ones see.
        block: The block.
    """
    span, needed = sampler.layout.block(block), blocks_seen(sampler, block)
    moved, poses = _walk(path, motion, range(span.video_start, span.video_end))
    kept = (each for each in path.seen if each.block in needed)
    return dataclasses.replace(moved, seen=(*kept, BlockPoses(block=block, poses=poses)))


def clip_cameras(camera: str | None, config: CameraConfig, grid: tuple[int, int], frames: int) -> Cameras:
    """Make the cameras of a whole clip of so many latent frames from camera keys; None stands still."""
    poses = _matrices(_walk(begin_path(camera), config.motion, range(frames))[1])[None]
    lens = lens_matrix(config.motion.view_degrees, *grid)
    return cameras_of_clip(Shots(poses, np.broadcast_to(lens, poses.shape)))


def _walk(path: CameraPath, motion: CameraMotion, frames: range) -> tuple[CameraPath, tuple[Pose, ...]]:
    """Move through latent frames; f shows the camera at pixel frame 8 f, and 0 the beginning of the path."""
    poses, state, segments = [], path.state, path.segments
    for frame in frames:
        for _ in range(PIXELS_PER_LATENT if frame else 0):
            state, segments = _next_frame(motion, state, segments)
        poses.append(tuple(pose_of(state, motion)[:3].ravel().tolist()))
    return dataclasses.replace(path, state=state, segments=segments), tuple(poses)


def blocks_seen(sampler: SamplerConfig, block: int) -> list[int]:
    """List the blocks whose poses a block needs, itself included; block 0 always has a place in the cache."""
    return [k for k in range(block + 1) if k < max(1, sampler.pinned) or k >= block - sampler.past_blocks]


def _next_frame(
    motion: CameraMotion, state: MotionState, segments: tuple[Segment, ...]
) -> tuple[MotionState, tuple[Segment, ...]]:
    """Move by one pixel frame; without keys to come the camera stands."""
    if not segments:
        return dataclasses.replace(state, velocity=(0.0,) * 4, keys=""), segments
    first, *rest = segments
    left = [dataclasses.replace(first, frames=first.frames - 1)] if first.frames > 1 else []
    return move(motion, state, first.keys), (*left, *rest)


def check_path(path: CameraPath, sampler: SamplerConfig, blocks: int) -> None:
    """Check the path of a stream that has made so many blocks, as a saved state has it.

    Raises:
        ValueError: It has not the poses that later blocks need.
    """
    lengths = {each.block: len(each.poses) for each in path.seen}
    expected = {k: sampler.layout.block(k).video_frames for k in blocks_seen(sampler, blocks - 1)}
    require(lengths == expected, "camera.seen", sorted(lengths), f"must be the frames of blocks {sorted(expected)}")


def next_positions(
    static: StaticConfig, path: CameraPath | None, slots: Slots, k: int
) -> tuple[BlockPositions, CameraPath | None]:
    """Make the positions of block k, and move the camera through it; a network without cameras has no path."""
    camera = static.model.camera
    if path is None or camera is None:
        return block_positions(static, k), path
    path = advance_path(path, camera.motion, static.sampler, k)
    lens = lens_matrix(camera.motion.view_degrees, *static.grid)
    poses = {each.block: _matrices(each.poses)[None] for each in path.seen}
    shots = {block: Shots(each, np.broadcast_to(lens, each.shape)) for block, each in poses.items()}
    return block_positions(static, k, cameras_of_block(static.sampler, slots, shots, k)), path


def standing_positions(static: StaticConfig, slots: Slots, k: int) -> BlockPositions:
    """Make the positions of block k of a stream whose camera stands, if it has one, as a program is compiled for."""
    path = None if static.model.camera is None else CameraPath()
    for block in range(k if path else 0):
        path = next_positions(static, path, slots, block)[1]
    return next_positions(static, path, slots, k)[0]


def _matrices(poses: Sequence[Pose]) -> Float[np.ndarray, "F 4 4"]:
    """Return poses as matrices."""
    rows = np.array(poses).reshape(-1, 3, 4)
    return np.concatenate([rows, np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(rows), 1, 4))], axis=1)
