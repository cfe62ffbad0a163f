"""Views: what makes one network a teacher, a masked student or a streaming student.

A view says who sees whom at the four causal sites, how tokens are rotated and which noise levels
they have. It is data: the network never asks which builder made it.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.layout import Block
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.nn.attention import Site, Sites
from omniforcing_jax.nn.mask import (
    AttentionMask,
    TokenSpan,
    banded_mask,
    context_mask,
    dense_mask,
    log_ratio_scale,
)
from omniforcing_jax.nn.rope import with_identity
from omniforcing_jax.parallel.spec import Leaf


@struct.dataclass
class Sigmas:
    """Noise levels in [0, 1] of both streams, float32.

    Attributes:
      video, audio: [B, U]: each level serves T / U consecutive tokens, so U is 1 (one per sample), the number
        of latent frames, or the number of tokens. B may be 1. Audio sinks take the first audio level.
      scalar_video, scalar_audio: [B], one level per sample, for the cross-modal modulation where the network
        takes it from the other stream; None where U is 1.
    """

    video: Leaf
    audio: Leaf
    scalar_video: Leaf = None
    scalar_audio: Leaf = None


@struct.dataclass
class Times:
    """The noise levels that drive one stream's modulation, [B, U] each."""

    main: Leaf
    cross: Leaf  # scale and shift of the crossings
    gate: Leaf  # gate of what the stream reads from the other


@struct.dataclass
class View:
    """A regime, as data.

    Attributes:
      sites: a Site for each of the four causal attentions.
      video, audio: noise levels; audio includes the sinks.
      sinks: sink tokens in front of the audio of this forward.
    """

    sites: Sites
    video: Times
    audio: Times
    sinks: int = struct.field(pytree_node=False)


def one_sigma(sigma: Float[Array, " B"]) -> Sigmas:
    """Give all tokens of a sample the same noise level."""
    return Sigmas(video=sigma[:, None], audio=sigma[:, None])


def bidirectional(config: ModelConfig, rotaries: Rotaries, sigmas: Sigmas) -> View:
    """Everyone sees everyone: the teacher, or a student with its masks off."""
    return _view(
        config,
        rotaries,
        sigmas,
        Sites(AttentionMask(), AttentionMask(), AttentionMask(), AttentionMask()),
        config.sinks,
    )


def masked(
    config: ModelConfig,
    rotaries: Rotaries,
    sigmas: Sigmas,
    blocks: tuple[Block, ...],
    *,
    window: int | None = None,
    pin_prefix: bool = False,
    dense: bool = False,
) -> View:
    """Whole clip, block-causal.

    Args:
      config: the network.
      rotaries: rotations of the whole clip.
      sigmas: noise levels, of any granularity.
      blocks: the clip's block table.
      window: blocks that a block may see, itself included; None sees the whole past.
      pin_prefix: block 0 stays visible beyond the window; sinks always do.
      dense: use the written-out mask instead of key prefixes: the same function, slower.
    """
    video, audio = spans(config, rotaries, blocks, pin_prefix)
    reach = len(blocks) if window is None else window
    make = dense_mask if dense else banded_mask

    def mask(queries: list[TokenSpan], keys: list[TokenSpan]) -> AttentionMask:
        scale = log_ratio_scale(queries, keys, reach) if config.log_ratio else None
        return dataclasses.replace(make(queries, keys, reach), scale=scale)

    return _view(config, rotaries, sigmas, _between(mask, video, audio), config.sinks)


def on_context(
    config: ModelConfig,
    rotaries: Rotaries,
    sigmas: Sigmas,
    blocks: tuple[Block, ...],
    *,
    window: int | None = None,
    pin_prefix: bool = False,
) -> View:
    """Whole clip at once, each block seeing itself and the *past* blocks of another forward.

    The other forward is a masked one over the same blocks, usually of clean latents: pass its `fresh` as
    `past`. This is what a stream computes, block by block, with its first window of positions.

    Raises:
      ValueError: if the network scales its queries by log ratios, which only the masked regime defines.
    """
    _refuse_log_ratio(config)
    video, audio = spans(config, rotaries, blocks, pin_prefix)
    reach = len(blocks) if window is None else window
    sites = _between(lambda queries, keys: context_mask(queries, keys, reach), video, audio)
    return _view(config, rotaries, sigmas, sites, config.sinks)


def streaming(
    config: ModelConfig, rotaries: Rotaries, sigmas: Sigmas, past_bias: Sites | None, *, prefix: bool = False
) -> View:
    """One block against the cache.

    Args:
      config: the network.
      rotaries: rotations of the block, at its absolute seconds.
      sigmas: noise levels of the block.
      past_bias: which cache slots may be read (`cache.past_bias`); None is the first block, which has no past
        and carries the sinks.
      prefix: the slots that may be read come first (`Cache.reads_prefix`).

    Raises:
      ValueError: if the network scales its queries by log ratios.
    """
    _refuse_log_ratio(config)
    if past_bias is None:
        return _view(
            config,
            rotaries,
            sigmas,
            Sites(AttentionMask(), AttentionMask(), AttentionMask(), AttentionMask()),
            config.sinks,
        )
    masks = Sites(
        video_self=AttentionMask(past_bias=past_bias.video_self, past_is_prefix=prefix),
        audio_self=AttentionMask(past_bias=past_bias.audio_self, past_is_prefix=prefix),
        a2v=AttentionMask(past_bias=past_bias.a2v, past_is_prefix=prefix),
        v2a=AttentionMask(past_bias=past_bias.v2a, past_is_prefix=prefix),
    )
    return _view(config, rotaries, sigmas, masks, 0)


def spans(
    config: ModelConfig, rotaries: Rotaries, blocks: tuple[Block, ...], pin_prefix: bool
) -> tuple[list[TokenSpan], list[TokenSpan]]:
    """List the tokens of both streams by block; the sinks are pinned and belong to block 0.

    Raises:
      ValueError: if the block table does not end where the rotations do.
    """
    tokens, audio_frames = rotaries.video.cos.shape[1], rotaries.audio.cos.shape[1]
    frames = blocks[-1].video_end
    if tokens % frames or audio_frames != blocks[-1].audio_end:
        raise ValueError(f"blocks end at {frames} and {blocks[-1].audio_end}: rotations hold {tokens}, {audio_frames}")
    per_frame, sinks = tokens // frames, config.sinks
    video = [
        TokenSpan(b.video_start * per_frame, b.video_end * per_frame, k, pin_prefix and k == 0)
        for k, b in enumerate(blocks)
    ]
    audio = [
        TokenSpan(sinks + b.audio_start, sinks + b.audio_end, k, pin_prefix and k == 0) for k, b in enumerate(blocks)
    ]
    return video, [TokenSpan(0, sinks, 0, True), *audio] if sinks else audio


def _between(mask, video: list[TokenSpan], audio: list[TokenSpan]) -> Sites:
    """Build the four sights from one table of blocks."""
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
    )
    audio_levels = sigmas.audio
    if sinks and audio_levels.shape[1] > 1:
        audio_levels = jnp.concatenate([jnp.repeat(audio_levels[:, :1], sinks, axis=1), audio_levels], axis=1)
    _check_levels("video", sigmas.video, rotaries.video.cos.shape[1])
    _check_levels("audio", audio_levels, audio.cos.shape[1])
    other = config.cross_timestep
    return View(
        sites=sites,
        video=_times(other, sigmas.video, sigmas.audio, sigmas.scalar_audio),
        audio=_times(other, audio_levels, sigmas.video, sigmas.scalar_video),
        sinks=sinks,
    )


def _times(semantics: CrossTimestep, own: Leaf, other: Leaf, other_scalar: Leaf) -> Times:
    """Resolve whose sigma drives the cross-modal modulation."""
    if semantics is CrossTimestep.OWN:
        return Times(main=own, cross=own, gate=own)
    if other_scalar is None:
        if other.shape[1] > 1:
            raise ValueError(f"scalar sigma=None: cross_timestep={semantics.value!r} needs one level per sample")
        other_scalar = other[:, 0]
    scalar = other_scalar[:, None]
    return Times(main=own, cross=own if semantics is CrossTimestep.HYBRID else scalar, gate=scalar)


def _check_levels(name: str, levels: Leaf, tokens: int) -> None:
    if tokens % levels.shape[1]:
        raise ValueError(f"{name} sigmas: {levels.shape[1]} levels for {tokens} tokens, must be 1 or divide them")


def _refuse_log_ratio(config: ModelConfig) -> None:
    if config.log_ratio:
        raise ValueError("log_ratio=True: defined for a whole clip only, a stream cannot scale its queries so")
