"""What a stream begins from and what drives it: pictures and sound, checked against the stream before any work.

A start is past: the blocks that it covers are committed as they are, where it gives picture and sound; where it gives
one, the other is made beside it. A drive covers the whole stream in the same way. Both become one `Guide`.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.codecs.mel import LTX2_MEL, MelConfig
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.layout import FRAME_RATE, Layout
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.conditioning import media
from omniforcing_jax.stream.conditioning.tracks import (
    NO_TRACKS,
    ConditioningTracks,
    LatentTrack,
    encode_picture,
    encode_sound,
    frame_counts,
)
from omniforcing_jax.strict_json import require

SLACK_S = 0.1
"""Seconds by which the sound of a start may be longer than its whole seconds: files end on codec frames."""

PictureSource = AnyPath | UInt8[np.ndarray, "F H W 3"]
SoundSource = AnyPath | Float32[np.ndarray, "samples channels"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Picture, sound or both, that a stream is given.

    Attributes:
        picture: A file, or frames uint8 [F, H, W, 3] at 24 per second, of just the stream's size.
        sound: A file, or samples float32 [samples, channels] in [-1, 1] at 16 kHz.
        keep: Whether the chunks of a start that gives both are handed out; if not, the first chunk is the first new
            one, and time goes on counting from the start's beginning.
    """

    picture: PictureSource | None = None
    sound: SoundSource | None = None
    keep: bool = True


NO_CONDITION = Condition()


class ConditioningPlan(NamedTuple):
    """Conditions that were checked.

    Attributes:
        picture: Where frames come from, and for how many blocks; None and 0 are none.
        picture_blocks: How many blocks it gives.
        sound: Samples at the rate of `mel`, or None.
        sound_blocks: How many blocks it gives.
        dropped: First blocks whose chunks nobody wants.
        mel: What a log-mel is.
    """

    picture: PictureSource | None = None
    picture_blocks: int = 0
    sound: Float32[np.ndarray, "samples channels"] | None = None
    sound_blocks: int = 0
    dropped: int = 0
    mel: MelConfig = LTX2_MEL


def continue_file(path: AnyPath, *, keep: bool = True) -> Condition:
    """Return the condition that a stream goes on where a file ends: its picture and, if it has any, its sound.

    Raises:
        ValueError: if the file cannot be read.
    """
    return Condition(picture=path, sound=path if media.has_sound(path) else None, keep=keep)


def plan_conditioning(
    config: PipelineConfig, static: StaticConfig, blocks: int | None, start: Condition, drive: Condition
) -> ConditioningPlan:
    """Check what a stream is given; no weights are needed.

    Args:
        config: The weights' configs.
        static: Has grid and layout.
        blocks: Length of the stream; None is endless.
        start: What it begins from: one frame and whole seconds, as the layout has them.
        drive: Picture or sound that it is made to, at least as long as the stream.

    Raises:
        ValueError: in one line, naming file and rule, if something has another size, rate or length than it must, is
            given twice, or leaves nothing to make.
    """
    for name in ("picture", "sound"):
        twice = getattr(start, name) is not None and getattr(drive, name) is not None
        require(not twice, name, _name(getattr(drive, name)), "the start has one already")
    both = drive.picture is not None and drive.sound is not None
    require(not both, "sound", _name(drive.sound), "picture and sound cannot both drive: nothing would be left to make")
    driven = drive.picture is not None or drive.sound is not None
    require(not driven or blocks is not None, "seconds", None, "a stream that is driven must end")
    layout, mel = static.sampler.layout, dataclasses.replace(LTX2_MEL, bins=config.audio_vae.mel_bins)
    plan = ConditioningPlan(mel=mel)
    if start.picture is not None:
        frames = _check_picture(config, static, start.picture)
        plan = plan._replace(picture=start.picture, picture_blocks=_fit_frames(layout, frames, _name(start.picture)))
    if start.sound is not None:
        samples = _samples_of(config, start.sound, mel)
        count = _fit_sound(layout, len(samples) / mel.sample_rate, plan.picture_blocks, _name(start.sound))
        plan = plan._replace(sound=samples, sound_blocks=count)
    started = max(plan.picture_blocks, plan.sound_blocks)
    if blocks is not None:
        rule = f"must be longer than the {layout.start_seconds(started)} s that the stream starts from"
        require(started < blocks, "seconds", layout.start_seconds(blocks), rule)
        if drive.picture is not None:
            frames, needed = _check_picture(config, static, drive.picture), sum(frame_counts(layout, blocks))
            rule = f"shorter than the stream, which has {needed} frames"
            require(frames >= needed, _name(drive.picture), f"{frames} frames", rule)
            plan = plan._replace(picture=drive.picture, picture_blocks=blocks)
        if drive.sound is not None:
            samples, seconds = _samples_of(config, drive.sound, mel), layout.start_seconds(blocks)
            held = len(samples) / mel.sample_rate
            require(held >= seconds, _name(drive.sound), f"{held:.2f} s", f"shorter than the stream of {seconds} s")
            plan = plan._replace(sound=samples, sound_blocks=blocks)
    if not start.keep:
        gives_both = 0 < plan.picture_blocks == plan.sound_blocks
        require(gives_both, "keep", False, "only a start with picture and sound has chunks that are not new")
        plan = plan._replace(dropped=started)
    return plan


def make_tracks(pipeline: Pipeline, static: StaticConfig, plan: ConditioningPlan) -> ConditioningTracks:
    """Make the tracks of a checked plan; nothing is encoded yet."""
    layout, codecs, video, audio = static.sampler.layout, pipeline.codecs, None, None
    if plan.picture is not None:
        batches = _batches(plan.picture, frame_counts(layout, plan.picture_blocks))
        video = LatentTrack(encode_picture(codecs, batches, static.dtype), plan.picture_blocks)
    if plan.sound is not None:
        pieces = encode_sound(codecs, plan.sound, layout, plan.sound_blocks, plan.mel)
        audio = LatentTrack(pieces, plan.sound_blocks)
    return ConditioningTracks(video, audio, plan.dropped) if video or audio else NO_TRACKS


def _name(source: PictureSource | SoundSource | None) -> str:
    return f"array {source.shape}" if isinstance(source, np.ndarray) else os.fspath(source or "")


def _check_picture(config: PipelineConfig, static: StaticConfig, source: PictureSource) -> int:
    """Check size and rate of a picture; returns its frames."""
    if isinstance(source, np.ndarray):
        require(source.ndim == 4 and source.dtype == np.uint8, "picture", source.shape, "must be uint8 [F, H, W, 3]")
        info = media.PictureInfo(source.shape[1], source.shape[2], len(source), FRAME_RATE)
    else:
        info = media.read_picture_info(source)
    height, width = (side * config.video_vae.spatial_compression for side in static.grid)
    fits = (info.height, info.width) == (height, width)
    require(fits, _name(source), f"{info.width}x{info.height}", f"the stream's picture is {width}x{height} pixels")
    rule = f"the stream has {FRAME_RATE} frames per second"
    require(info.frames == 1 or info.rate == FRAME_RATE, _name(source), f"{info.rate:g} frames per second", rule)
    return info.frames


def _samples_of(config: PipelineConfig, source: SoundSource, mel: MelConfig) -> Float32[np.ndarray, "samples channels"]:
    channels = config.audio_vae.audio_channels
    if not isinstance(source, np.ndarray):
        return media.read_sound(source, mel.sample_rate, channels)
    fits = source.ndim == 2 and source.shape[1] == channels and source.dtype == np.float32
    require(fits, "sound", source.shape, f"must be float32 [samples, {channels}]")
    return source


def _fit_frames(layout: Layout, frames: int, name: str) -> int:
    """Count the blocks that a start's frames are."""
    first, step = frame_counts(layout, 2)
    blocks = 1 + max(0, frames - first) // step
    below = first + (blocks - 1) * step
    rule = f"a start has {first} + {step} j of them; the nearest are {below} and {below + step}"
    require(frames == below, name, f"{frames} frames", rule)
    return blocks


def _fit_sound(layout: Layout, seconds: float, picture_blocks: int, name: str) -> int:
    """Count the blocks that a start's sound is; beside a picture it has as many."""
    blocks = picture_blocks or 1 + max(0, int((seconds - layout.first_seconds) // layout.step_seconds))
    wanted = layout.start_seconds(blocks)
    rule = f"must be {wanted} s, {'as the picture is' if picture_blocks else 'a whole number of blocks'}"
    require(seconds > 0 and wanted <= seconds <= wanted + SLACK_S, name, f"{seconds:.2f} s of sound", rule)
    return blocks


def _batches(source: PictureSource, sizes: Sequence[int]) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
    if isinstance(source, np.ndarray):
        return iter(np.split(source[: sum(sizes)], np.cumsum(sizes)[:-1]))
    return media.read_frames(source, iter(sizes))
