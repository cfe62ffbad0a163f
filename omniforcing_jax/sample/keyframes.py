"""Keyframes and references: pictures and clips that a teacher's clip is given, checked, and encoded to a guide.

A keyframe that begins at second 0 replaces the first latents of the clip. Any other one is appended: its tokens have
the second of its frames. A reference (IC-LoRA) is a whole clip that is appended, on the clip's own clock.

Source: ltx-core@1.0.0:conditioning/types/reference_video_cond.py;
diffusers@0.42.1:pipelines/ltx2/pipeline_ltx2_condition.py; diffusers@0.42.1:pipelines/ltx2/pipeline_ltx2_ic_lora.py.
"""

import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, UInt8

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.layout import FRAME_RATE, PIXELS_PER_LATENT, latent_frames, pixel_frames, video_seconds
from omniforcing_jax.model.positions import place_frames
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.sample.guide import GivenFrames, Guide, make_guide
from omniforcing_jax.stream.conditioning.compress import compress_frames
from omniforcing_jax.stream.conditioning.condition import LARGEST_CRF, PictureSource, name_source, read_info
from omniforcing_jax.stream.conditioning.media import Fit, fit_picture, read_frames
from omniforcing_jax.stream.conditioning.tracks import encode_picture
from omniforcing_jax.strict_json import require

FACTOR = "reference_downscale_factor"
"""Key of an IC-LoRA's header: how many times larger the clip is than the references of its training."""

AT_ONCE = 3  # latent frames that are encoded at once

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Keyframe:
    """A picture or a clip that is given at a place of the clip.

    Attributes:
        picture: A file, or frames uint8 [F, H, W, 3] at 24 per second; one frame is a picture.
        second: Where its first frame is.
        strength: From 0 (ignored) to 1 (kept as it is).
        fit: How another size is brought to the clip's; None refuses it.
        compress: Quality (CRF) of H.264 by which a picture of one frame is compressed and read again; None leaves it.
    """

    picture: PictureSource
    second: int | float = 0.0
    strength: int | float = 1.0
    fit: Fit | None = None
    compress: int | None = None

    def __post_init__(self) -> None:
        name = name_source(self.picture)
        rule = "must be a second of the clip"
        require(math.isfinite(self.second) and self.second >= 0, f"keyframe {name}: second", self.second, rule)
        _check_strength("keyframe", name, self.strength)
        fits = self.compress is None or 0 <= self.compress <= LARGEST_CRF
        require(fits, "compress", self.compress, f"must be between 0 and {LARGEST_CRF}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A clip beside the one that is made, which an IC-LoRA was trained to read.

    Attributes:
        picture: A file, or frames uint8 [F, H, W, 3] at 24 per second.
        strength: From 0 (ignored) to 1 (kept as it is).
        fit: How another size is brought to the reference's; None refuses it.
    """

    picture: PictureSource
    strength: int | float = 1.0
    fit: Fit | None = None

    def __post_init__(self) -> None:
        _check_strength("reference", name_source(self.picture), self.strength)


class GuidePlan(NamedTuple):
    """Frames that are given, checked.

    Attributes:
        source: Where they come from.
        frames: How many of them are used.
        first: The frame of the clip where a keyframe begins; None for a reference.
        size: Height and width that they are brought to.
        grid: Their latent rows and columns.
        scale: Times that the clip's latents are larger than theirs.
        strength: Their strength.
        fit: How another size is brought to theirs.
        compress: Quality of H.264 of a picture, or None.
    """

    source: PictureSource
    frames: int
    first: int | None
    size: tuple[int, int]
    grid: tuple[int, int]
    scale: int
    strength: float
    fit: Fit | None
    compress: int | None

    @property
    def tokens(self) -> int:
        """Tokens that are appended to the clip's own."""
        return 0 if self.first == 0 else latent_frames(self.frames) * self.grid[0] * self.grid[1]

    def seconds(self) -> Float[np.ndarray, " F"]:
        """Seconds of the middles of its latent frames in the clip."""
        count = latent_frames(self.frames)
        if self.first is None:
            return video_seconds(0, count)
        middle = 0.5 if self.frames == 1 else PIXELS_PER_LATENT / 2
        return (self.first + PIXELS_PER_LATENT * np.arange(count) + middle) / FRAME_RATE


def parse_keyframe(text: str, fit: Fit | None = None, compress: int | None = None) -> Keyframe:
    """Read a keyframe as the command line has it, FILE@SECOND[:STRENGTH].

    Raises:
        ValueError: It cannot be read.
    """
    found = re.fullmatch(r"(.+)@([^@:]+)(?::([^@:]+))?", text)
    if found is None:
        raise ValueError(f"keyframe={text!r}: must be FILE@SECOND or FILE@SECOND:STRENGTH")
    file, second, strength = found[1], _read_number("keyframe", text, found[2]), found[3]
    strength = 1.0 if strength is None else _read_number("keyframe", text, strength)
    return Keyframe(picture=file, second=second, strength=strength, fit=fit, compress=compress)


def parse_reference(text: str, fit: Fit | None = None) -> Reference:
    """Read a reference as the command line has it, FILE[:STRENGTH].

    Raises:
        ValueError: The strength is no number.
    """
    file, colon, strength = text.rpartition(":")
    if not colon or os.path.exists(text):
        return Reference(picture=text, fit=fit)
    return Reference(picture=file, strength=_read_number("reference", text, strength), fit=fit)


def _read_number(flag: str, text: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise ValueError(f"{flag}={text!r}: {number!r} is no number") from None


def _check_strength(kind: str, name: str, strength: int | float) -> None:
    require(0 < strength <= 1, f"{kind} {name}: strength", strength, "must be above 0 and at most 1")


def plan_guides(
    config: PipelineConfig,
    grid: tuple[int, int],
    frames: int,
    keyframes: Sequence[Keyframe],
    references: Sequence[Reference],
    headers: Sequence[Mapping[str, str]],
) -> tuple[GuidePlan, ...]:
    """Check what a clip is given; no weights are needed.

    Args:
        config: The configs of the weights.
        grid: Latent rows and columns of the clip.
        frames: Pixel frames of the clip.
        keyframes: Pictures and clips at places of it.
        references: Clips beside it.
        headers: Metadata of the LoRAs' files.

    Raises:
        ValueError: In one line, if something lies outside the clip, contradicts another one, or has another size.
    """
    plans = [_plan_keyframe(config, grid, frames, keyframe) for keyframe in keyframes]
    _refuse_overlaps(plans)
    scale = _find_scale(headers) if references else 1
    plans += [_plan_reference(config, grid, frames, reference, scale) for reference in references]
    has_cameras = config.model.camera is not None and any(plan.tokens for plan in plans)
    rule = f"{config.name!r} has camera attention, so only its first frames can be given, at second 0"
    require(not has_cameras, "keyframe", [name_source(plan.source) for plan in plans if plan.tokens], rule)
    return tuple(plans)


def _plan_keyframe(config: PipelineConfig, grid: tuple[int, int], frames: int, keyframe: Keyframe) -> GuidePlan:
    name, first = name_source(keyframe.picture), math.floor(keyframe.second * FRAME_RATE + 0.5)
    last_s = (frames - 1) / FRAME_RATE
    require(first < frames, f"keyframe {name}", keyframe.second, f"lies outside the clip, which ends at {last_s:g} s")
    plan = _plan(config, keyframe.picture, grid, 1, frames - first, keyframe.fit)
    is_picture = keyframe.compress is None or plan.frames == 1
    require(is_picture, "compress", keyframe.compress, f"{name} has {plan.frames} frames, not one")
    return plan._replace(first=first, strength=float(keyframe.strength), compress=keyframe.compress)


def _plan_reference(
    config: PipelineConfig, grid: tuple[int, int], frames: int, reference: Reference, scale: int
) -> GuidePlan:
    name = name_source(reference.picture)
    for side in grid:
        rule = f"the LoRA was trained with references {scale} times smaller than the clip; choose sides that divide"
        require(side % scale == 0, f"reference {name}", f"{side} latents", rule)
    plan = _plan(config, reference.picture, (grid[0] // scale, grid[1] // scale), scale, frames, reference.fit)
    return plan._replace(strength=float(reference.strength))


def _plan(
    config: PipelineConfig, source: PictureSource, grid: tuple[int, int], scale: int, most: int, fit: Fit | None
) -> GuidePlan:
    """Check the size of a source, and count the frames of it that are used, at most `most`; fewer are said."""
    pixels = config.video_vae.spatial_compression
    size = (grid[0] * pixels, grid[1] * pixels)
    found = read_info(size, source, fit).frames
    frames = pixel_frames(1 + (min(found, most) - 1) // PIXELS_PER_LATENT)
    if frames < found:
        log.warning("%s: the first %d of its %d frames are used", name_source(source), frames, found)
    return GuidePlan(source, frames, None, size, grid, scale, 1.0, fit, None)


def _refuse_overlaps(plans: Sequence[GuidePlan]) -> None:
    """Refuse keyframes that say two things of one frame."""
    spans = sorted((plan.first or 0, (plan.first or 0) + plan.frames, name_source(plan.source)) for plan in plans)
    for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
        where = f"frame {begin} ({begin / FRAME_RATE:g} s) of the clip"
        require(begin >= end, "keyframe", other, f"contradicts {one}: both are given for {where}")


def _find_scale(headers: Sequence[Mapping[str, str]]) -> int:
    """Find how many times larger the clip is than references, in the headers of LoRAs.

    Raises:
        ValueError: Two say different factors, or one says none that can be.
    """
    said = {header[FACTOR] for header in headers if FACTOR in header}
    require(len(said) <= 1, FACTOR, sorted(said), "the LoRAs contradict each other")
    if not said:
        log.warning("no LoRA says how large references are; they have the size of the clip")
        return 1
    (factor,) = said
    is_whole = factor.isdecimal() and 1 <= int(factor) <= 64
    require(is_whole, FACTOR, factor, "must be a whole number from 1 to 64")
    return int(factor)


def encode_guides(pipeline: Pipeline, plans: Sequence[GuidePlan], tokens: int, dtype: DTypeLike) -> Guide:
    """Encode what a clip is given.

    Args:
        pipeline: The weights, with the encoder of pictures.
        plans: What is given.
        tokens: Video tokens of the clip.
        dtype: Type to encode in.
    """

    def encode(plan: GuidePlan) -> GivenFrames:
        pieces = list(encode_picture(pipeline.codecs, _batches(plan), dtype))
        return place_given(pipeline.config.model, plan, jnp.concatenate(pieces, axis=1))

    return make_guide(list(map(encode, plans)), tokens)


def place_given(config: ModelConfig, plan: GuidePlan, latents: Float[Array, "1 G C"]) -> GivenFrames:
    """Give the latents of a plan their place in the clip."""
    place = None if plan.first == 0 else place_frames(config, plan.seconds(), plan.grid, plan.scale)
    return GivenFrames(latents, plan.grid[0] * plan.grid[1], plan.strength, place)


def _batches(plan: GuidePlan) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
    """Read the frames in pieces of whole latents; only the first piece may have another length than others."""
    later, rest = divmod(latent_frames(plan.frames) - 1, AT_ONCE)
    sizes = [pixel_frames(1 + rest), *[AT_ONCE * PIXELS_PER_LATENT] * later]
    if isinstance(plan.source, np.ndarray):
        name, shown = name_source(plan.source), plan.source[: plan.frames]
        fitted = np.stack([fit_picture(frame, plan.size, plan.fit, name) for frame in shown])
        batches = iter(np.split(fitted, np.cumsum(sizes)[:-1]))
    else:
        batches = read_frames(plan.source, iter(sizes), plan.size, plan.fit)
    crf = plan.compress
    return batches if crf is None else (compress_frames(frames, crf) for frames in batches)
