"""The rollout of a causal student: denoise a block, clean pass, commit, next block.

This file holds pure functions of one block, their two compiled programs, and a whole rollout for tests. Block 0 and
later blocks have different shapes, so each program is compiled twice. A rollout knows neither pixels nor a clock: the
stream (stream/chunk_stream.py) decides when a block is made, and what happens to it between denoising and commit.

Source: OmniForcing@50a271f:ltx_distillation/inference/causal_pipeline.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, DTypeLike, Float, Int, Key

from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.model.cache import Cache, commit, empty_cache, keep, past_masks
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.eight_bits import EightBitCache
from omniforcing_jax.model.layer_list import is_list, map_layers
from omniforcing_jax.model.levels import LevelTable, look_up, make_levels
from omniforcing_jax.model.positions import Positions, Shift, make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.model.transformer import Prediction, Transformer, predict, text_kv
from omniforcing_jax.model.view import Sigmas, hold_scalars, streaming
from omniforcing_jax.nn.attention import NO_PAST, Sites
from omniforcing_jax.nn.camera import Cameras
from omniforcing_jax.schedule import add_noise, fresh_shares, renew, to_x0
from omniforcing_jax.streams import Streams, map_streams
from omniforcing_jax.strict_json import require


class _Level(NamedTuple):
    """A noise level, float32 [], and its place in a StreamNetwork's table, int32 []; None where there is no table."""

    sigma: Array
    place: Array | None


class CleanEstimate(NamedTuple):
    """A denoise step's estimate of its block: the clean tokens, and the noise that hides them."""

    x0: Streams
    noise: Streams


NO_CONDITIONING = Streams(video=None, audio=None)
"""Both streams are generated. A conditioning stream (given, not generated) has its clean tokens here."""


@struct.dataclass
class PromptKV:
    """Text keys and values of a prompt.

    Attributes:
        clean: Those of the clean pass.
        steps: Those of the denoise steps, with a leading axis J - 1, for a network whose text keys depend on sigma.
            None where all passes read the same: in any other network, or with a `scalar_sigma`.
    """

    clean: Text
    steps: Text | None


@struct.dataclass
class StreamNetwork:
    """A network, and its modulation at the levels of a sampler: of every denoise step, and last of the clean pass."""

    params: Transformer
    table: LevelTable


Network = Transformer | StreamNetwork  # a Transformer alone embeds the levels in every pass, as trainings must


@struct.dataclass
class BlockPositions:
    """Host tables of one block: positions of its tokens, and by how much it sees pinned keys moved."""

    tokens: Positions
    pinned_shift: Shift


class StaticConfig(NamedTuple):
    """The static part of a stream's programs.

    Attributes:
        model: The network.
        sampler: How the student samples.
        grid: Latent rows and columns.
        dtype: Type to compute in.
        cache: What of the cache is in eight bits; None has all of it in the type to compute in.
    """

    model: ModelConfig
    sampler: SamplerConfig
    grid: tuple[int, int]
    dtype: DTypeLike = jnp.dtype(jnp.float32)
    cache: EightBitCache | None = None


def block_positions(static: StaticConfig, k: int, cameras: Cameras | None = None) -> BlockPositions:
    """Make the positions of block k, on the host: about a millisecond, a few kilobytes.

    Raises:
        ValueError: The network has camera attention, and there are no cameras (`cameras.cameras_of_block`).
    """
    config, sampler = static.model, static.sampler
    has_all = config.camera is None or cameras is not None
    require(has_all, "cameras", cameras, "this network sees every block through cameras, and none are given")
    return BlockPositions(
        tokens=make_positions(config, sampler.layout.block(k), static.grid, cameras=cameras),
        pinned_shift=shift_phases(config, sampler.shift_seconds(k)),
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def make_cache(static: StaticConfig, batch: int, has_list: bool = False) -> Cache:
    """Make the empty cache of `batch` streams; `has_list` for a list of layers."""
    how = {"has_list": has_list, "eight_bits": static.cache}
    return empty_cache(static.model, static.sampler, static.grid, batch, static.dtype, **how)


def stream_network(params: Transformer, static: StaticConfig) -> StreamNetwork:
    """Make the modulation of a stream's sampler, once for the stream."""
    return StreamNetwork(params=params, table=make_table(params, static))


@partial(jax.jit, static_argnames="static")
def make_table(params: Transformer, static: StaticConfig) -> LevelTable:
    """Make the modulation of all levels: of every denoise step, and last of the clean pass."""
    sampler = static.sampler
    return make_levels(params, static.model, (*sampler.sigmas[:-1], sampler.context_noise), sampler.scalar_sigma)


@partial(jax.jit, static_argnames="static")
def make_prompt_kv(
    params: Transformer,
    context_video: Float[Array, "B X _"],
    context_audio: Float[Array, "B X _"],
    mask: Int[Array, "B X"] | None,
    *,
    static: StaticConfig,
) -> PromptKV:
    """Project a prompt's contexts to the keys and values of all layers, once per prompt."""

    def at(sigma: float) -> Text:
        sigmas = jnp.full(context_video.shape[:1], sigma, jnp.float32)
        return text_kv(params, context_video, context_audio, mask, sigma=sigmas, dtype=static.dtype)

    held = static.sampler.scalar_sigma
    clean = at(static.sampler.context_noise if held is None else held)
    if held is not None or not static.model.text_needs_sigma:
        return PromptKV(clean=clean, steps=None)
    steps = [at(sigma) for sigma in static.sampler.sigmas[:-1]]
    return PromptKV(clean=clean, steps=jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps))


def draw_noise(
    keys: Key[Array, " B"],
    block: Int[Array, ""],
    step: Int[Array, ""] | int,
    static: StaticConfig,
    like: BlockPositions,
) -> Streams:
    """Draw the noise of one denoise step; it depends only on request, block, step and stream.

    The clean pass uses the step after the last one.
    """
    tokens_v, tokens_a = _token_counts(static, like)
    config = static.model

    def draw(key: Array) -> Streams:
        key = jax.random.fold_in(jax.random.fold_in(key, block), step)
        return Streams(
            video=jax.random.normal(jax.random.fold_in(key, 0), (tokens_v, config.video.latent_channels)),
            audio=jax.random.normal(jax.random.fold_in(key, 1), (tokens_a, config.audio.latent_channels)),
        )

    return jax.vmap(draw)(keys)


def draw_context_noise(
    keys: Key[Array, " B"], block: Int[Array, ""], static: StaticConfig, like: BlockPositions
) -> Streams | None:
    """Draw the noise of a block's clean pass; None where the context noise is 0."""
    if not static.sampler.context_noise:
        return None
    return draw_noise(keys, block, static.sampler.steps, static, like)


def levels(static: StaticConfig) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Return, for every denoise step, its noise level and the fresh share of its noise."""
    renewal = static.sampler.renewal
    shares = fresh_shares(static.sampler.sigmas, math.inf if renewal is None else renewal)
    return jnp.asarray(static.sampler.sigmas[:-1], jnp.float32), jnp.asarray(shares)


def first_estimate(noise: Streams) -> CleanEstimate:
    """Return the estimate before the first step: zeros, and the step's noise."""
    noise = jax.tree.map(lambda x: x.astype(jnp.float32), noise)
    return CleanEstimate(x0=jax.tree.map(jnp.zeros_like, noise), noise=noise)


def renoise(
    last: CleanEstimate, fresh: Streams, sigma: Float[Array, ""], share: Float[Array, ""], static: StaticConfig
) -> Streams:
    """Noise the last clean estimate to the next level; with a `renewal`, only a share of the noise is fresh."""
    drawn = fresh
    if static.sampler.renewal is not None:
        drawn = jax.tree.map(partial(renew, share=share), last.noise, fresh)
    return jax.tree.map(partial(add_noise, sigma=sigma), last.x0, drawn)


@jax.named_scope("denoise_step")
def denoise_step(
    params: Transformer,
    cache: Cache,
    text: Text,
    noisy: Streams,
    sigma: Float[Array, ""],
    positions: BlockPositions,
    static: StaticConfig,
    *,
    remat: Callable[..., Any] | None = None,
) -> CleanEstimate:
    """Predict a block once, both streams at one noise level, against the cache, which is only read.

    `remat` wraps the body of the scan over layers, for use under a gradient.
    """
    level = _Level(sigma, place=None)
    prediction = _predict(params, cache, text, noisy, Streams(level, level), positions, static, remat=remat)
    return estimate_clean(noisy, prediction.velocity, sigma, NO_CONDITIONING)


def estimate_clean(noisy: Streams, velocity: Streams, sigma: Float[Array, ""], conditioning: Streams) -> CleanEstimate:
    """Turn a predicted velocity into an estimate; the tokens of a conditioning stream replace its own estimate."""
    x0 = _hold(conditioning, jax.tree.map(partial(to_x0, sigma=sigma), noisy, velocity))
    return CleanEstimate(x0=x0, noise=jax.tree.map(jnp.add, x0, velocity))


def denoise(
    params: Network,
    cache: Cache,
    prompt: PromptKV,
    noise: Streams,
    positions: BlockPositions,
    static: StaticConfig,
    conditioning: Streams = NO_CONDITIONING,
    context: Streams = NO_CONDITIONING,
) -> tuple[Streams, Cache]:
    """Run the denoise steps of one block against the cache.

    Each step noises the last clean estimate (zeros at first) and predicts a new one. The noise is fresh. With a
    `renewal` only a share is; the rest is the last step's own estimate of the noise, x0 + velocity.

    Args:
        params: The network.
        cache: The stream's past; not read by block 0.
        prompt: The prompt's keys and values, from `make_prompt_kv`.
        noise: Fresh noise of every step, [J - 1, B, ...].
        positions: Tables of this block.
        static: The static part.
        conditioning: Clean tokens of a conditioning stream. Every step holds it at the context noise level, with text
            of that sigma, as the clean pass does, and ignores the prediction for it.
        context: The same tokens at context noise.

    Returns:
        The clean estimates of every step, [J - 1, B, ...], of which the last one is the block, and the cache. Its
        committed slots are as they were.
    """

    @jax.named_scope("denoise_step")
    def step(carry: tuple[CleanEstimate, Cache], inputs: Any) -> tuple[tuple[CleanEstimate, Cache], Streams]:
        (last, cache), (level, share, fresh, text) = carry, inputs
        noisy = _hold(context, renoise(last, fresh, level.sigma, share, static))
        text = _text_with(conditioning, prompt.clean if text is None else text, prompt.clean)
        at = map_streams(lambda known: level if known is None else _context_level(static), conditioning)
        predicted = _predict(params, cache, text, noisy, at, positions, static)
        last = estimate_clean(noisy, predicted.velocity, level.sigma, conditioning)
        return (last, keep(cache, predicted.fresh)), last.x0

    start = first_estimate(jax.tree.map(lambda x: x[0], noise))
    sigmas, shares = levels(static)
    each = _Level(sigmas, jnp.arange(len(sigmas))), shares, noise, prompt.steps
    (_, cache), made = jax.lax.scan(step, (start, cache), each)
    return made, cache


@jax.named_scope("clean_pass")
def clean_pass(
    params: Network,
    cache: Cache,
    prompt: PromptKV,
    latents: Streams,
    noise: Streams | None,
    positions: BlockPositions,
    static: StaticConfig,
    masks: Sites | None = None,
) -> Cache:
    """Run the network on the finished block at context noise, and commit the block's keys and values.

    `noise` may be None where the context noise is 0. `masks` chooses the slots that are read, by default those that the
    next block may see (`cache.past_masks`).
    """
    sigma = jnp.float32(static.sampler.context_noise)
    if noise is not None:
        latents = jax.tree.map(partial(add_noise, sigma=sigma), latents, noise)
    at = Streams(*[_context_level(static)] * 2)
    return commit(cache, _predict(params, cache, prompt.clean, latents, at, positions, static, masks).fresh)


@partial(jax.jit, static_argnames="static", donate_argnames="cache")
def denoise_block(
    params: Network,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    positions: BlockPositions,
    conditioning: Streams = NO_CONDITIONING,
    *,
    static: StaticConfig,
) -> tuple[Streams, Cache]:
    """Denoise the next block: one program for block 0, one for all later blocks, per choice of conditioning streams.

    The cache is donated, because a list of layers writes the keys of each step in place; use the one that is returned.
    """
    steps = jnp.arange(static.sampler.steps)
    noise = jax.vmap(lambda step: draw_noise(keys, cache.blocks_done, step, static, positions))(steps)
    context = _at_context_noise(conditioning, draw_context_noise(keys, cache.blocks_done, static, positions), static)
    made, cache = denoise(params, cache, prompt, noise, positions, static, conditioning, context)
    return jax.tree.map(lambda x: x[-1], made), cache


@partial(jax.jit, static_argnames="static", donate_argnames="cache")
def commit_block(
    params: Network,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    latents: Streams,
    positions: BlockPositions,
    *,
    static: StaticConfig,
) -> Cache:
    """Run the clean pass of a block and commit it in place; the cache is donated."""
    noise = draw_context_noise(keys, cache.blocks_done, static, positions)
    return clean_pass(params, cache, prompt, latents, noise, positions, static)


def rollout(
    params: Transformer, prompt: PromptKV, keys: Key[Array, " B"], blocks: int, *, static: StaticConfig
) -> Streams:
    """Roll out whole clips of `blocks` blocks, one per key: the slow and simple form of a stream."""
    cache, made = make_cache(static, len(keys), is_list(params.layers)), []
    for k in range(blocks):
        positions = block_positions(static, k)
        latents, cache = denoise_block(params, cache, prompt, keys, positions, static=static)
        cache = commit_block(params, cache, prompt, keys, latents, positions, static=static)
        made.append(latents)
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces, axis=1), *made)


def to_frames(video: Float[Array, "B T C"], grid: tuple[int, int]) -> Float[Array, "B F h w C"]:
    """Cut video tokens into latent frames."""
    return video.reshape(video.shape[0], -1, *grid, video.shape[-1])


def _at_context_noise(conditioning: Streams, noise: Streams | None, static: StaticConfig) -> Streams:
    if noise is None:
        return conditioning
    add = partial(add_noise, sigma=static.sampler.context_noise)
    return map_streams(lambda known, own: None if known is None else add(known, own), conditioning, noise)


def _hold(conditioning: Streams, latents: Streams) -> Streams:
    """Put the tokens of a conditioning stream in the place of its latents."""
    return map_streams(lambda known, x: x if known is None else known, conditioning, latents)


def _context_level(static: StaticConfig) -> _Level:
    """Return the level of the clean pass, which conditioning streams always have."""
    return _Level(jnp.float32(static.sampler.context_noise), jnp.int32(static.sampler.steps))


def _text_with(conditioning: Streams, text: Text, clean: Text) -> Text:
    """Return each stream's text: a conditioning stream has that of the clean pass."""

    def choose(own: Streams, of_clean: Streams) -> Streams:
        return map_streams(lambda known, own, other: own if known is None else other, conditioning, own, of_clean)

    return Text(kv=map_layers(choose, text.kv, clean.kv), site=text.site)


def _predict(
    params: Network,
    cache: Cache,
    text: Text,
    latents: Streams,
    at: Streams,
    positions: BlockPositions,
    static: StaticConfig,
    masks: Sites | None = None,
    remat: Callable[..., Any] | None = None,
) -> Prediction:
    config, is_first = static.model, _is_first(static, positions)
    turned = rotaries(config, positions.tokens)
    if masks is None and not is_first:
        masks = past_masks(cache, shift_rotations(config, positions.pinned_shift))
    sigmas, past = Sigmas(*(level.sigma[None, None] for level in at)), NO_PAST if is_first else cache.past
    sigmas = hold_scalars(sigmas, static.sampler.scalar_sigma)
    view, made = streaming(config, turned, sigmas, masks), None
    if isinstance(params, StreamNetwork):
        params, made = params.params, look_up(params.table, config, map_streams(lambda level: level.place, at))
    options = {"past": past, "levels": made, "dtype": static.dtype, "remat": remat}
    return predict(params, config, latents, view, text, **options)


def _is_first(static: StaticConfig, positions: BlockPositions) -> bool:
    """Tell block 0 from later blocks by its length, which always differs."""
    return len(positions.tokens.time.cos) == static.sampler.layout.first_v


def _token_counts(static: StaticConfig, positions: BlockPositions) -> tuple[int, int]:
    rows, columns = static.grid
    return len(positions.tokens.time.cos) * rows * columns, len(positions.tokens.audio_time.cos)
