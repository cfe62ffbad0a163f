"""The cameras of latent frames, from poses: host arithmetic in float64, made for each block and a few kilobytes large.

A pose is where a camera stands and looks, camera to world, in the unit that the network knows. The network's matrix is
P = L V with the pose as V, although the formula wants its inverse: the published weights were trained so. All cameras
of a forward may be moved by one common translation without any effect. So the first frame of the window is the origin,
and numbers stay small however far the camera goes.

Source: UCPE as in JoyAI-Echo's EchoWM.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.model.cache import Slots
from omniforcing_jax.nn.camera import Cameras

Matrices = Float[np.ndarray, "... 4 4"]


class Shots(NamedTuple):
    """Where the cameras of latent frames stand, and how they see.

    Attributes:
        poses: Camera to world, in the network's unit.
        lenses: L of each frame.
    """

    poses: Float[np.ndarray, "b F 4 4"]
    lenses: Float[np.ndarray, "b F 4 4"]


def lens_matrix(view_degrees: float, height: int, width: int) -> Float[np.ndarray, "4 4"]:
    """Make L of a horizontal field of view; `height` and `width` in any unit, pixels are square."""
    focal = 0.5 / math.tan(math.radians(view_degrees) / 2)  # of the picture's width
    return np.diag([focal, focal * width / height, 1.0, 1.0])


def lens_of_intrinsics(k: Float[np.ndarray, "... 3 3"], height: int, width: int) -> Matrices:
    """Make L of intrinsics in pixels of a picture."""
    lens = np.broadcast_to(np.eye(4), (*k.shape[:-2], 4, 4)).copy()
    lens[..., 0, 0], lens[..., 0, 2] = k[..., 0, 0] / width, k[..., 0, 2] / width - 0.5
    lens[..., 1, 1], lens[..., 1, 2] = k[..., 1, 1] / height, k[..., 1, 2] / height - 0.5
    return lens


def move_origin(poses: Matrices, anchor: Matrices) -> Matrices:
    """Translate all cameras alike, so that the anchor stands at the origin."""
    shift = -np.swapaxes(anchor[..., :3, :3], -1, -2) @ anchor[..., :3, 3:]
    moved = poses.astype(np.float64)
    moved[..., :3, 3:] += moved[..., :3, :3] @ shift
    return moved


def project_poses(poses: Matrices, lens: Matrices) -> tuple[Matrices, Matrices]:
    """Return P and P^-1 of poses, float32; their rotations are taken as orthonormal."""
    poses = poses.astype(np.float64)
    turn = np.swapaxes(poses[..., :3, :3], -1, -2)
    inverse = np.broadcast_to(np.eye(4), poses.shape).copy()
    inverse[..., :3, :3], inverse[..., :3, 3:] = turn, -turn @ poses[..., :3, 3:]
    return (lens @ poses).astype(np.float32), (inverse @ np.linalg.inv(lens)).astype(np.float32)


def cameras_of_clip(shots: Shots) -> Cameras:
    """Make the cameras of a whole clip."""
    own, inverse = project_poses(shots.poses, shots.lenses)
    return Cameras(own=own, own_inverse=inverse)


def cameras_of_block(sampler: SamplerConfig, slots: Slots, shots: Mapping[int, Shots], k: int) -> Cameras:
    """Make the cameras of block k of a stream, and of what is cached when it is made.

    Args:
        sampler: The sampler, which has the layout.
        slots: Division of the cache's slots of video keys.
        shots: Those of block 0, of the other pinned blocks, of those in the ring, and of block k, by block.
        k: The block.
    """
    anchor = shots[anchor_block(sampler, k)].poses[:, :1]

    def project(blocks: Sequence[int]) -> tuple[Matrices, Matrices]:
        """Project the frames of blocks; a place that is empty, -1, is hidden and may hold anything."""
        found = [shots[k if block < 0 else block] for block in blocks]
        poses, lenses = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return project_poses(move_origin(poses, anchor), lenses)

    own, inverse = project([k])
    if k == 0:
        return Cameras(own=own, own_inverse=inverse)
    ring = [*([] if slots.pinned_blocks else [0]), *blocks_in_ring(slots, k)]
    pinned = [block if block < k else -1 for block in range(slots.pinned_blocks)]
    cached = {name: project(blocks)[1] for name, blocks in (("ring", ring), ("pinned", pinned)) if blocks}
    return Cameras(own=own, own_inverse=inverse, **cached)


def anchor_block(sampler: SamplerConfig, k: int) -> int:
    """Return the block whose first frame is the origin for block k: the oldest in the ring, once blocks are evicted."""
    first = k - sampler.past_blocks
    return first if first > sampler.pinned else 0


def blocks_in_ring(slots: Slots, k: int) -> list[int]:
    """List the block that each place of the ring holds when later block k is made; -1 is none."""
    held, first = [-1] * slots.ring, slots.first_in_ring
    for block in range(max(first, k - slots.past), k + int(slots.in_place)):
        held[max(0, block - first) % slots.ring] = block
    return held
