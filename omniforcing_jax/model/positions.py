"""Positions of tokens: small per-axis tables from the host, combined into rotations on the device.

A block's `Positions` are a few kilobytes and take about a millisecond to make. A stream makes them anew for every
block, in float64 and at absolute seconds, and passes them to its programs as arrays.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.layout import Block, audio_seconds, video_seconds
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.nn.camera import Cameras, CameraSite, camera_site
from omniforcing_jax.nn.rope import Phases, Rotary, angles, combine, frequencies, phases_of_shift, repeat
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.strict_json import require


@struct.dataclass
class Positions:
    """Per-axis phases of consecutive latent frames, float32 NumPy arrays of a few rows, and their cameras, if any.

    `keyframes` is [F], 1 for a latent frame that is one pixel frame long and 0 for others. It is None if no frame is,
    or if the network does not mark them.
    """

    time: Phases  # video frames, at the frequencies of the three-axis table
    rows: Phases
    columns: Phases
    video_time: Phases  # video frames, at the frequencies of the one-axis tables (crossings)
    audio_time: Phases
    cameras: Cameras | None
    keyframes: ArrayLeaf | np.ndarray | None


@struct.dataclass
class FramePositions:
    """Per-axis phases of video latent frames that lie at any seconds, as those of `Positions`."""

    time: Phases
    rows: Phases
    columns: Phases
    video_time: Phases


@struct.dataclass
class Rotaries:
    """Rotations of every token except the audio sinks, what camera attention needs, and `View.keyframes`, if any."""

    video: Rotary
    audio: Rotary
    cross_video: Rotary
    cross_audio: Rotary
    camera: CameraSite | None = None
    keyframes: ArrayLeaf | None = None


@struct.dataclass
class Shift:
    """A shift in seconds as phases of one row, by which all pinned keys are rotated."""

    solid: Phases  # at the frequencies of the three-axis table
    line: Phases


def clip_block(latent_frames: int, audio_frames: int) -> Block:
    """A whole clip as one block."""
    return Block(0, latent_frames, 0, audio_frames)


def make_positions(
    config: ModelConfig,
    block: Block,
    grid: tuple[int, int],
    *,
    offset_seconds: int | float = 0,
    cameras: Cameras | None = None,
) -> Positions:
    """Make the tables of a block's latent frames on a latent grid of (rows, columns), on the host.

    Args:
        config: The network.
        block: The latent frames.
        grid: Latent rows and columns.
        offset_seconds: Moves both streams in time.
        cameras: Cameras of the frames (model/cameras.py); None leaves camera attention out.

    Raises:
        ValueError: There are cameras, and the network has no camera attention.
    """
    require(cameras is None or config.camera is not None, "camera", cameras, "this network has no camera attention")
    seconds_v = video_seconds(block.video_start, block.video_frames) + offset_seconds
    seconds_a = audio_seconds(block.audio_start, block.audio_frames) + offset_seconds
    video, line = place_frames(config, seconds_v, grid), frequencies(config.rotary, 1, config.audio.width)
    return Positions(
        time=video.time,
        rows=video.rows,
        columns=video.columns,
        video_time=video.video_time,
        audio_time=angles(line, seconds_a / config.rotary.max_seconds),
        cameras=cameras,
        keyframes=_mark_keyframes(block) if config.keyframe_embedding else None,
    )


def _mark_keyframes(block: Block) -> Float[np.ndarray, " F"] | None:
    """Mark a clip's first latent frame, which the causal encoder makes of one pixel frame.

    Source: ltx-core@1.2.0:tools.py, VideoLatentTools.
    """
    return None if block.video_start else (np.arange(block.video_frames) == 0).astype(np.float32)


def place_frames(
    config: ModelConfig, seconds: Float[np.ndarray, " F"], grid: tuple[int, int], scale: int = 1
) -> FramePositions:
    """Make the tables of video latent frames at these seconds, on the host; a latent is `scale` times as wide."""
    rotary = config.rotary
    solid, line = frequencies(rotary, 3, config.video.width), frequencies(rotary, 1, config.audio.width)
    rows, columns = (_pixel_phases(config, solid, size, scale) for size in grid)
    fractions = seconds / rotary.max_seconds
    return FramePositions(time=angles(solid, fractions), rows=rows, columns=columns, video_time=angles(line, fractions))


def rotaries(config: ModelConfig, positions: Positions) -> Rotaries:
    """Combine the tables of a block into one rotation per token (video tokens: frame, row, column)."""
    kind, heads = config.rotary.kind, config.video.heads
    grid = positions.rows.cos.shape[0], positions.columns.cos.shape[0]
    audio = combine((positions.audio_time,), config.audio.width, heads, kind)
    video, cross_video = _rotate_frames(config, positions)
    return Rotaries(
        video=video,
        audio=audio,
        cross_video=cross_video,
        cross_audio=audio,
        camera=None if config.camera is None else camera_site(config.camera, positions.cameras, grid),
        keyframes=None if positions.keyframes is None else jnp.repeat(positions.keyframes, grid[0] * grid[1]),
    )


def append_frames(config: ModelConfig, tables: Rotaries, frames: Sequence[FramePositions]) -> Rotaries:
    """Add the tokens of further video frames behind those of a clip. They are not marked as keyframes.

    Source: ltx-core@1.2.0:conditioning/types/keyframe_cond.py, whose given frames carry no mark.

    Raises:
        ValueError: The clip is seen through cameras, and the frames have none.
    """
    require(tables.camera is None, "camera", None, "frames that are appended to a clip have no cameras")
    rotations = [(tables.video, tables.cross_video), *(_rotate_frames(config, each) for each in frames)]
    video, cross_video = (
        jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *parts) for parts in zip(*rotations, strict=True)
    )
    added = video.cos.shape[1] - tables.video.cos.shape[1]
    marks = None if tables.keyframes is None else jnp.pad(tables.keyframes, (0, added))
    return dataclasses.replace(tables, video=video, cross_video=cross_video, keyframes=marks)


def _rotate_frames(config: ModelConfig, positions: Positions | FramePositions) -> tuple[Rotary, Rotary]:
    """Combine the tables of video tokens (frame, row, column): those of self-attention, and of the crossings."""
    kind, heads = config.rotary.kind, config.video.heads
    video = combine((positions.time, positions.rows, positions.columns), config.video.width, heads, kind)
    cross = combine((positions.video_time,), config.audio.width, heads, kind)
    return video, repeat(cross, positions.rows.cos.shape[0] * positions.columns.cos.shape[0])


def shift_phases(config: ModelConfig, seconds: int | float) -> Shift:
    """Make the phases that move a key `seconds` later, on the host; 0 s is the exact identity."""
    rotary = config.rotary
    solid, line = frequencies(rotary, 3, config.video.width), frequencies(rotary, 1, config.audio.width)
    return Shift(
        solid=phases_of_shift(solid, seconds / rotary.max_seconds),
        line=phases_of_shift(line, seconds / rotary.max_seconds),
    )


def shift_rotations(config: ModelConfig, by: Shift) -> Sites:
    """Combine the phases into rotations, one row each, of the keys of the four sites."""
    kind, heads = config.rotary.kind, config.video.heads
    still = Phases(cos=jnp.ones_like(by.solid.cos), sin=jnp.zeros_like(by.solid.sin))
    video = combine((by.solid, still, still), config.video.width, heads, kind)
    line = combine((by.line,), config.audio.width, heads, kind)
    return Sites(video_self=video, audio_self=line, a2v=line, v2a=line)


def _pixel_phases(config: ModelConfig, grid: Float[np.ndarray, " W"], size: int, scale: int) -> Phases:
    """Phases of the midpoints, in pixels, of `size` latent rows or columns."""
    midpoints = (np.arange(size) + 0.5) * (config.spatial_compression * scale)
    return angles(grid, midpoints / config.rotary.max_pixels)
