"""Conditioning: picture and sound that are given, not made, and their checks against the stream before any work.

A `start` covers the first blocks of a stream, a `drive` all of them. Blocks with given picture and sound are committed
unchanged. Where only one of the two is given, the other is made to match. Both become one `ConditioningTracks`.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from omniforcing_jax.codecs.mel import LTX2_MEL, MelConfig
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.media_file import check_samples
from omniforcing_jax.layout import FRAME_RATE, Layout, pixel_frames
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.conditioning import media
from omniforcing_jax.stream.conditioning.compress import compress_frames
from omniforcing_jax.stream.conditioning.tracks import (
    NO_TRACKS,
    ConditioningTracks,
    LatentTrack,
    encode_picture,
    encode_sound,
    frame_counts,
)
from omniforcing_jax.strict_json import require

log = logging.getLogger(__name__)

RATE_SLACK = 0.01
"""Frames per second by which a file's mean rate may differ before it is said."""

LONGEST_START_S = 3600
"""Seconds of sound that an endless stream may begin with."""

SLACK_S = 0.1
"""Seconds by which the sound of a start may exceed its whole seconds: files end on codec frames."""

ROUNDING_S = 1e-6
"""Seconds, far less than a sample, by which sums of seconds are not exact."""

LARGEST_CRF = 51
"""Worst quality of H.264."""

PictureSource = AnyPath | UInt8[np.ndarray, "F H W 3"]
SoundSource = AnyPath | Float32[np.ndarray, "samples channels"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Picture, sound or both that a stream is given.

    Attributes:
        picture: A file of any frame rate, or frames uint8 [F, H, W, 3] at 24 per second.
        sound: A file, or samples float32 [samples, channels] in [-1, 1] at 16 kHz.
        fit: How a picture of another size than the stream's is brought to it; None refuses it.
        compress: Quality (CRF) of H.264 by which a picture of one frame is compressed and read again, 0 to 51; None
            leaves it.
        drop_past: Whether to leave out the chunks of a start that has both. The first chunk is then the first new one,
            and times still count from the beginning of the start.
    """

    picture: PictureSource | None = None
    sound: SoundSource | None = None
    fit: media.Fit | None = None
    compress: int | None = None
    drop_past: bool = False

    def __post_init__(self) -> None:
        fits = self.compress is None or 0 <= self.compress <= LARGEST_CRF
        require(fits, "compress", self.compress, f"must be between 0 and {LARGEST_CRF}")


NO_CONDITION = Condition()


class ConditioningPlan(NamedTuple):
    """Conditions that were checked.

    Attributes:
        picture: Source of the frames, or None.
        picture_blocks: Number of blocks that it covers.
        sound: Samples at the rate of `mel`, or None.
        sound_blocks: Number of blocks that they cover.
        dropped: Number of first blocks whose chunks are left out.
        mel: Config of the log-mel spectrogram.
        size: Height and width of the stream's picture.
        fit: How frames of another size are brought to it.
        compress: Quality of H.264 by which a picture of one frame is compressed, or None.
    """

    picture: PictureSource | None = None
    picture_blocks: int = 0
    sound: Float32[np.ndarray, "samples channels"] | None = None
    sound_blocks: int = 0
    dropped: int = 0
    mel: MelConfig = LTX2_MEL
    size: tuple[int, int] = (0, 0)
    fit: media.Fit | None = None
    compress: int | None = None


def continue_file(path: AnyPath, *, fit: media.Fit | None = None, drop_past: bool = False) -> Condition:
    """Return the condition under which a stream continues a file: its picture and, if it has any, its sound.

    Raises:
        ValueError: If the file cannot be read.
    """
    return Condition(picture=path, sound=path if media.has_sound(path) else None, fit=fit, drop_past=drop_past)


def plan_conditioning(
    config: PipelineConfig, static: StaticConfig, blocks: int | None, start: Condition, drive: Condition
) -> ConditioningPlan:
    """Check the conditions of a stream; no weights are needed.

    Args:
        config: The configs of the weights.
        static: Static config of the stream, with grid and layout.
        blocks: Length of the stream; None is endless.
        start: Picture and sound of the first blocks: one frame and whole seconds, in blocks of the layout.
        drive: Picture or sound of the whole stream, at least as long as it.

    Raises:
        ValueError: In one line that names file and rule, if a size, a rate or a length is wrong, if something is given
            twice, or if nothing is left to make.
    """
    _check_combination(blocks, start, drive)
    rule = "these weights make no first picture; give one with --from-image, or start=Condition(picture=...)"
    is_made = start.picture is None and drive.picture is None
    require(not (static.sampler.needs_picture and is_made), "from-image", None, rule)
    mel = dataclasses.replace(LTX2_MEL, bins=config.audio_vae.mel_bins)
    height, width = (side * config.video_vae.spatial_compression for side in static.grid)
    plan = _add_start(ConditioningPlan(mel=mel, size=(height, width)), config, static, blocks, start)
    started = max(plan.picture_blocks, plan.sound_blocks)
    if start.drop_past:
        has_both = 0 < plan.picture_blocks == plan.sound_blocks
        require(has_both, "drop_past", True, "needs a start with both picture and sound")
        plan = plan._replace(dropped=started)
    if blocks is None:
        return plan
    layout = static.sampler.layout
    rule = f"must be longer than the {layout.start_seconds(started)} s that the stream starts with"
    require(started < blocks, "seconds", layout.start_seconds(blocks), rule)
    return _add_drive(plan, config, static, blocks, drive)


def _check_combination(blocks: int | None, start: Condition, drive: Condition) -> None:
    """Check which of picture and sound are given, and how often."""
    for name in ("picture", "sound"):
        twice = getattr(start, name) is not None and getattr(drive, name) is not None
        require(not twice, name, name_source(getattr(drive, name)), "the start has one already")
    both = drive.picture is not None and drive.sound is not None
    require(
        not both,
        "sound",
        name_source(drive.sound),
        "picture and sound cannot both drive: nothing would be left to make",
    )
    driven = drive.picture is not None or drive.sound is not None
    require(not driven or blocks is not None, "seconds", None, "must be given for a stream that is made to a file")


def _add_start(
    plan: ConditioningPlan, config: PipelineConfig, static: StaticConfig, blocks: int | None, start: Condition
) -> ConditioningPlan:
    """Add the picture and the sound of the first blocks."""
    layout, start_s = static.sampler.layout, None
    if start.picture is not None:
        info = _check_picture(plan.size, start)
        count = _count_picture_blocks(layout, info.frames, name_source(start.picture))
        is_image = start.compress is None or info.frames == 1
        require(is_image, "compress", start.compress, f"{name_source(start.picture)} has {info.frames} frames, not one")
        plan = plan._replace(picture=start.picture, picture_blocks=count, fit=start.fit, compress=start.compress)
        start_s = info.start_s if start.picture is start.sound else None  # both of one file, on one clock
    if start.sound is not None:
        longest_s = layout.sound_seconds(plan.picture_blocks or blocks or 0) or LONGEST_START_S
        samples = _samples_of(config, start.sound, plan.mel, longest_s + 1, start_s)
        seconds = len(samples) / plan.mel.sample_rate
        count = _count_sound_blocks(layout, seconds, plan.picture_blocks, name_source(start.sound))
        plan = plan._replace(sound=samples, sound_blocks=count)
    return plan


def _add_drive(
    plan: ConditioningPlan, config: PipelineConfig, static: StaticConfig, blocks: int, drive: Condition
) -> ConditioningPlan:
    """Add the picture or the sound of the whole stream."""
    layout = static.sampler.layout
    if drive.picture is not None:
        frames, needed = _check_picture(plan.size, drive).frames, pixel_frames(layout.block(blocks - 1).video_end)
        rule = f"shorter than the stream, which has {needed} frames"
        require(frames >= needed, name_source(drive.picture), f"{frames} frames", rule)
        plan = plan._replace(picture=drive.picture, picture_blocks=blocks, fit=drive.fit)
    if drive.sound is not None:
        needed_s = layout.sound_seconds(blocks)
        samples = _samples_of(config, drive.sound, plan.mel, needed_s + 1)
        seconds = len(samples) / plan.mel.sample_rate
        rule = f"shorter than the stream of {layout.start_seconds(blocks)} s, whose sound takes {needed_s:g} s"
        require(seconds >= needed_s - ROUNDING_S, name_source(drive.sound), f"{seconds:.2f} s", rule)
        plan = plan._replace(sound=samples, sound_blocks=blocks)
    return plan


def make_tracks(pipeline: Pipeline, static: StaticConfig, plan: ConditioningPlan) -> ConditioningTracks:
    """Make the tracks of a checked plan. Nothing is encoded yet."""
    layout, codecs, video, audio = static.sampler.layout, pipeline.codecs, None, None
    if plan.picture is not None:
        batches = _batches(plan, frame_counts(layout, plan.picture_blocks))
        if plan.compress is not None:
            batches = (compress_frames(frames, plan.compress) for frames in batches)
        video = LatentTrack(encode_picture(codecs, batches, static.dtype), plan.picture_blocks)
    if plan.sound is not None:
        pieces = encode_sound(codecs, plan.sound, layout, plan.sound_blocks, plan.mel)
        audio = LatentTrack(pieces, plan.sound_blocks)
    return ConditioningTracks(video, audio, plan.dropped) if video or audio else NO_TRACKS


def name_source(source: PictureSource | SoundSource | None) -> str:
    """Name a source in messages."""
    return f"array {source.shape}" if isinstance(source, np.ndarray) else os.fspath(source or "")


def _check_picture(size: tuple[int, int], condition: Condition) -> media.PictureInfo:
    assert condition.picture is not None, "only pictures are checked"
    return read_info(size, condition.picture, condition.fit)


def read_info(size: tuple[int, int], source: PictureSource, fit: media.Fit | None) -> media.PictureInfo:
    """Check a picture against the size of what is made, and return what is known of it. Another frame rate is said.

    Raises:
        ValueError: It cannot be read, or it has another size and `fit` is None.
    """
    height, width = size
    if isinstance(source, np.ndarray):
        fits = source.ndim == 4 and source.shape[-1] == 3 and source.dtype == np.uint8
        require(fits, "picture", source.shape, "must be uint8 [F, H, W, 3]")
        info = media.PictureInfo(source.shape[1], source.shape[2], len(source), FRAME_RATE)
    else:
        info = media.read_picture_info(source)
    fits = fit is not None or (info.height, info.width) == size
    rule = f"the stream's picture is {width}x{height} pixels; --fit crop, pad or stretch brings it to that size"
    require(fits, name_source(source), f"{info.width}x{info.height}", rule)
    if info.frames > 1 and abs(info.rate - FRAME_RATE) > RATE_SLACK:
        log.warning(
            "%s: %.4g frames per second, shown at %d by their times", name_source(source), info.rate, FRAME_RATE
        )
    return info


def _samples_of(
    config: PipelineConfig, source: SoundSource, mel: MelConfig, at_most_s: int | float, start_s: float | None = None
) -> Float32[np.ndarray, "samples channels"]:
    channels = config.audio_vae.audio_channels
    if not isinstance(source, np.ndarray):
        return media.read_sound(source, mel.sample_rate, channels, at_most_s, start_s)
    fits = source.ndim == 2 and source.shape[1] == channels and source.dtype == np.float32
    require(fits, "sound", source.shape, f"must be float32 [samples, {channels}]")
    check_samples(source, name_source(source))
    return source


def _count_picture_blocks(layout: Layout, frames: int, name: str) -> int:
    """Count the blocks of a start with so many frames."""
    first, step = frame_counts(layout, 2)
    blocks = 1 + max(0, frames - first) // step
    below = first + (blocks - 1) * step
    rule = f"a start has {first} + {step} j frames; the nearest numbers are {below} and {below + step}"
    require(frames == below, name, f"{frames} frames", rule)
    return blocks


def _count_sound_blocks(layout: Layout, seconds: float, picture_blocks: int, name: str) -> int:
    """Count the blocks of a start with so many seconds of sound. With a picture it must cover the same blocks."""
    rest = seconds + ROUNDING_S - layout.sound_seconds(1)
    blocks = picture_blocks or 1 + max(0, int(rest // layout.step_seconds))
    expected = layout.sound_seconds(blocks)
    rule = f"must be {expected:g} s, {'like the picture' if picture_blocks else 'a whole number of blocks'}"
    require(
        seconds > 0 and expected - ROUNDING_S <= seconds <= expected + SLACK_S, name, f"{seconds:.2f} s of sound", rule
    )
    return blocks


def _batches(plan: ConditioningPlan, sizes: Sequence[int]) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
    """Return the frames of block after block, at the stream's size."""
    source = plan.picture
    if not isinstance(source, np.ndarray):
        return media.read_frames(source or "", iter(sizes), plan.size, plan.fit)
    blocks = np.split(source[: sum(sizes)], np.cumsum(sizes)[:-1])
    return (
        np.stack([media.fit_picture(frame, plan.size, plan.fit, name_source(source)) for frame in each])
        for each in blocks
    )
