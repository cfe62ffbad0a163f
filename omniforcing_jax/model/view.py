"""Views: the data that makes one network a teacher, a masked student or a streaming student.

A view holds the masks of the four causal sites, the rotations of all tokens and their noise levels. The network never
asks which function built it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.layout import Block
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.nn.attention import Site, Sites
from omniforcing_jax.nn.camera import CameraSite, see_same_frames
from omniforcing_jax.nn.mask import AttentionMask, TokenSpan, banded_mask, context_mask, dense_mask, log_ratio_scale
from omniforcing_jax.nn.rope import with_identity
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.streams import Streams

MakeMask = Callable[[Sequence[TokenSpan], Sequence[TokenSpan]], AttentionMask]  # of queries and keys


@struct.dataclass
class Sigmas:
    """Noise levels in [0, 1] of both streams, float32.

    Attributes:
        video: [B, U]. Each level serves T / U consecutive tokens: U is 1 (one level per sample), the number of latent
            frames, or the number of tokens. B may be 1.
        audio: The same for audio; sinks take the first level.
        scalar_video: [B], one level per sample for the cross-modal modulation, where the network takes it from the
            other stream. May be None where U is 1.
        scalar_audio: The same for audio.
    """

    video: ArrayLeaf
    audio: ArrayLeaf
    scalar_video: ArrayLeaf | None = None
    scalar_audio: ArrayLeaf | None = None


@struct.dataclass
class Times:
    """The noise levels that drive one stream's modulation, [B, U] each."""

    main: ArrayLeaf
    cross: ArrayLeaf  # scale and shift of the crossings
    gate: ArrayLeaf  # gate of the crossing that this stream receives


@struct.dataclass
class View:
    """A regime, as data.

    Attributes:
        sites: A Site for each of the four causal attentions, and a CameraSite if there are cameras.
        times: Times of each stream; audio includes the sinks.
        sinks: Sink tokens in front of the audio of this forward.
        keyframes: [T], 1 for the video tokens that the network's keyframe embedding marks and 0 for others; None marks
            none.
    """

    sites: Sites
    times: Streams
    sinks: int = struct.field(pytree_node=False)
    keyframes: ArrayLeaf | None = None


def one_sigma(sigma: Float[Array, " B"]) -> Sigmas:
    """Use one noise level for all tokens of a sample."""
    return Sigmas(video=sigma[:, None], audio=sigma[:, None])


def hold_scalars(sigmas: Sigmas, level: float | None) -> Sigmas:
    """Fix the scalar levels of both streams at `level`; None leaves them."""
    if level is None:
        return sigmas
    held = jnp.full(sigmas.video.shape[:1], level, jnp.float32)
    return dataclasses.replace(sigmas, scalar_video=held, scalar_audio=held)


def bidirectional(config: ModelConfig, rotaries: Rotaries, sigmas: Sigmas) -> View:
    """All tokens see all tokens: the teacher, or a student without its masks."""
    return _view(config, rotaries, sigmas, Sites.of_keys(AttentionMask(), AttentionMask()), config.sinks)


def masked(
    config: ModelConfig,
    rotaries: Rotaries,
    sigmas: Sigmas,
    blocks: tuple[Block, ...],
    *,
    window: int | None = None,
    pinned: int = 0,
    dense: bool = False,
) -> View:
    """Whole clip, block-causal.

    Args:
        config: The network.
        rotaries: Rotations of the whole clip.
        sigmas: Noise levels, of any granularity.
        blocks: The clip's block table.
        window: Blocks that a block may see, itself included; None shows the whole past.
        pinned: Blocks that stay visible beyond the window, from block 0 on. Sinks always do.
        dense: Use the written-out mask instead of key ranges: the same function, slower.
    """
    spans = token_spans(config, rotaries, blocks, pinned)
    reach = len(blocks) if window is None else window
    make = dense_mask if dense else banded_mask

    def mask(queries: Sequence[TokenSpan], keys: Sequence[TokenSpan]) -> AttentionMask:
        scale = log_ratio_scale(queries, keys, reach) if config.log_ratio else None
        return dataclasses.replace(make(queries, keys, reach), scale=scale)

    return _view(config, rotaries, sigmas, _masks(mask, spans), config.sinks)


def on_context(
    config: ModelConfig,
    rotaries: Rotaries,
    sigmas: Sigmas,
    blocks: tuple[Block, ...],
    *,
    window: int | None = None,
    pinned: int = 0,
) -> View:
    """Whole clip at once, each block seeing itself and the *past* blocks of another forward.

    The other forward is a masked one over the same blocks, usually of clean latents: pass its `fresh` as `past`
    (`as_past`). A stream computes the same block by block, with its first window of positions.

    Raises:
        ValueError: The network scales its queries by log ratios, which only the masked regime defines.
    """
    _refuse_log_ratio(config)
    spans = token_spans(config, rotaries, blocks, pinned)
    reach = len(blocks) if window is None else window
    masks = _masks(lambda queries, keys: context_mask(queries, keys, reach), spans)
    if rotaries.camera is not None:
        rotaries = dataclasses.replace(rotaries, camera=see_same_frames(rotaries.camera))
    return _view(config, rotaries, sigmas, masks, config.sinks)


def streaming(config: ModelConfig, rotaries: Rotaries, sigmas: Sigmas, past: Sites | None) -> View:
    """One block against the cache.

    Args:
        config: The network.
        rotaries: Rotations of the block, at its absolute seconds.
        sigmas: Noise levels of the block.
        past: A PastMask for each site (`cache.past_masks`). None is the first block, which has no past and carries the
            sinks.

    Raises:
        ValueError: The network scales its queries by log ratios.
    """
    _refuse_log_ratio(config)
    if past is None:
        return bidirectional(config, rotaries, sigmas)
    sites = Sites(*(AttentionMask(past=mask) for mask in (past.video_self, past.audio_self, past.a2v, past.v2a)))
    return _view(config, rotaries, sigmas, sites, 0)


def token_spans(config: ModelConfig, rotaries: Rotaries, blocks: tuple[Block, ...], pinned: int) -> Streams:
    """List the tokens of both streams by block, as TokenSpans; sinks are pinned and belong to block 0.

    Raises:
        ValueError: The block table does not end where the rotations do.
    """
    tokens, audio_frames = rotaries.video.cos.shape[1], rotaries.audio.cos.shape[1]
    frames = blocks[-1].video_end
    if tokens % frames or audio_frames != blocks[-1].audio_end:
        raise ValueError(f"blocks end at {frames} and {blocks[-1].audio_end}: rotations hold {tokens}, {audio_frames}")
    per_frame, sinks = tokens // frames, config.sinks
    video = [TokenSpan(b.video_start * per_frame, b.video_end * per_frame, k, k < pinned) for k, b in enumerate(blocks)]
    audio = [TokenSpan(sinks + b.audio_start, sinks + b.audio_end, k, k < pinned) for k, b in enumerate(blocks)]
    return Streams(video, [TokenSpan(0, sinks, 0, True), *audio] if sinks else audio)


def _masks(mask: MakeMask, spans: Streams) -> Sites:
    """Build the four masks from one table of blocks."""
    video, audio = spans
    return Sites(
        video_self=mask(video, video), audio_self=mask(audio, audio), a2v=mask(video, audio), v2a=mask(audio, video)
    )


def _view(config: ModelConfig, rotaries: Rotaries, sigmas: Sigmas, masks: Sites, sinks: int) -> View:
    audio, cross_audio = with_identity(rotaries.audio, sinks), with_identity(rotaries.cross_audio, sinks)
    sites = Sites(
        video_self=Site(rotaries.video, rotaries.video, masks.video_self),
        audio_self=Site(audio, audio, masks.audio_self),
        a2v=Site(rotaries.cross_video, cross_audio, masks.a2v),
        v2a=Site(cross_audio, rotaries.cross_video, masks.v2a),
        camera=None if rotaries.camera is None else _camera_site(rotaries.camera, masks.video_self),
    )
    audio_levels = sigmas.audio
    if sinks and audio_levels.shape[1] > 1:
        audio_levels = jnp.concatenate([jnp.repeat(audio_levels[:, :1], sinks, axis=1), audio_levels], axis=1)
    _check_levels("video", sigmas.video, rotaries.video.cos.shape[1])
    _check_levels("audio", audio_levels, audio.cos.shape[1])
    times = Streams(
        video=times_of(config.cross_timestep, sigmas.video, sigmas.audio, sigmas.scalar_audio),
        audio=times_of(config.cross_timestep, audio_levels, sigmas.video, sigmas.scalar_video),
    )
    return View(sites=sites, times=times, sinks=sinks, keyframes=rotaries.keyframes)


def _camera_site(camera: CameraSite, mask: AttentionMask) -> CameraSite:
    """See what video's self-attention sees. Cameras stand in space, so no key is seen at another second."""
    return dataclasses.replace(camera, mask=dataclasses.replace(mask, past=dataclasses.replace(mask.past, shift=None)))


def times_of(semantics: CrossTimestep, own: ArrayLeaf, other: ArrayLeaf, other_scalar: ArrayLeaf | None) -> Times:
    """Resolve whose sigma drives the cross-modal modulation of the stream at levels `own`, [B, U].

    Raises:
        ValueError: The network needs one level per sample of the other stream, which has several.
    """
    if semantics is CrossTimestep.OWN:
        return Times(main=own, cross=own, gate=own)
    if other_scalar is None:
        if other.shape[1] > 1:
            raise ValueError(f"scalar sigma=None: cross_timestep={semantics.value!r} needs one level per sample")
        other_scalar = other[:, 0]
    scalar = other_scalar[:, None]
    return Times(main=own, cross=own if semantics is CrossTimestep.HYBRID else scalar, gate=scalar)


def _check_levels(name: str, levels: ArrayLeaf, tokens: int) -> None:
    if tokens % levels.shape[1]:
        raise ValueError(f"{name} sigmas: {levels.shape[1]} levels for {tokens} tokens, must be 1 or divide them")


def _refuse_log_ratio(config: ModelConfig) -> None:
    if config.log_ratio:
        raise ValueError("log_ratio=True: defined for a whole clip only, a stream cannot scale its queries so")
