"""The rollout of a causal student: denoise a block, clean pass, commit, next block.

Pure functions of one block, their two compiled programs (block 0 and later blocks have shapes of their own, so each
program is compiled twice), and a whole rollout for tests. A rollout knows no pixels and no clock of its own: the stream
(stream/chunk_stream.py) decides when a block is made and what happens to it between denoising and commit.
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
from omniforcing_jax.model.cache import Cache, commit, empty_cache, past_bias
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.positions import (
    Positions,
    Shift,
    make_positions,
    rotaries,
    shift_phases,
    shift_rotations,
)
from omniforcing_jax.model.transformer import Prediction, Transformer, predict, text_kv
from omniforcing_jax.model.view import Sigmas, one_sigma, streaming
from omniforcing_jax.nn.attention import NO_PAST, Sites
from omniforcing_jax.schedule import add_noise, fresh_shares, renew, to_x0
from omniforcing_jax.streams import Streams


class CleanEstimate(NamedTuple):
    """What a denoise step knows of its block: the clean tokens, and the noise that hides them."""

    x0: Streams
    noise: Streams


NO_CONDITIONING = Streams(video=None, audio=None)
"""Nothing of a block is given: both streams are made. A stream that is given has its clean tokens here."""


@struct.dataclass
class PromptKV:
    """Text keys and values of a prompt: for the denoise steps and for the clean pass.

    With text AdaLN they depend on sigma, and `denoise` has a leading axis of denoise steps; without, both are one.
    """

    denoise: Text
    clean: Text
    per_step: bool = struct.field(pytree_node=False)


@struct.dataclass
class BlockPositions:
    """What the host knows of a block: positions of its tokens, and the shift of pinned keys before the next block."""

    tokens: Positions
    pinned_shift: Shift


class StaticConfig(NamedTuple):
    """What is static in the programs of a stream.

    Attributes:
        model: The network.
        sampler: What makes it a student.
        grid: Latent rows and columns.
        dtype: Type to compute in.
    """

    model: ModelConfig
    sampler: SamplerConfig
    grid: tuple[int, int]
    dtype: DTypeLike = jnp.dtype(jnp.float32)


def block_positions(static: StaticConfig, k: int) -> BlockPositions:
    """Make the positions of block k, on the host: about a millisecond, a few kilobytes."""
    config, sampler = static.model, static.sampler
    return BlockPositions(
        tokens=make_positions(config, sampler.layout.block(k), static.grid),
        pinned_shift=shift_phases(config, sampler.shift_seconds(k + 1)),
    )


@partial(jax.jit, static_argnums=(0, 1))
def make_cache(static: StaticConfig, batch: int) -> Cache:
    """Make the empty cache of a stream of `batch` rows, in the type that is computed in."""
    return empty_cache(static.model, static.sampler, static.grid, batch, static.dtype)


@partial(jax.jit, static_argnames="static")
def make_prompt_kv(
    params: Transformer,
    context_video: Float[Array, "B X Cv"],
    context_audio: Float[Array, "B X Ca"],
    mask: Int[Array, "B X"] | None,
    *,
    static: StaticConfig,
) -> PromptKV:
    """Project the contexts of a prompt to the keys and values of all layers: once per prompt."""

    def at(sigma: float) -> Text:
        sigmas = jnp.full(context_video.shape[:1], sigma, jnp.float32)
        return text_kv(params, context_video, context_audio, mask, sigma=sigmas, dtype=static.dtype)

    clean = at(static.sampler.context_noise)
    if not static.model.text_adaln:
        return PromptKV(denoise=clean, clean=clean, per_step=False)
    steps = [at(sigma) for sigma in static.sampler.sigmas[:-1]]
    return PromptKV(denoise=jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), clean=clean, per_step=True)


def draw_noise(
    keys: Key[Array, " B"],
    block: Int[Array, ""],
    step: Int[Array, ""] | int,
    static: StaticConfig,
    like: BlockPositions,
) -> Streams:
    """Draw the noise of one denoise step: a function of (request, block, step, stream) and of nothing else.

    The clean pass has the step after the last one.
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


def levels(static: StaticConfig) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Return the noise level of every denoise step and the share of its noise that is fresh."""
    renewal = static.sampler.renewal
    shares = fresh_shares(static.sampler.sigmas, math.inf if renewal is None else renewal)
    return jnp.asarray(static.sampler.sigmas[:-1], jnp.float32), jnp.asarray(shares)


def first_estimate(noise: Streams) -> CleanEstimate:
    """What is known before the first step: nothing, and its noise."""
    noise = jax.tree.map(lambda x: x.astype(jnp.float32), noise)
    return CleanEstimate(x0=jax.tree.map(jnp.zeros_like, noise), noise=noise)


def renoise(
    last: CleanEstimate, fresh: Streams, sigma: Float[Array, ""], share: Float[Array, ""], static: StaticConfig
) -> Streams:
    """Noise the last clean estimate to the next level: with fresh noise, or with a `renewal` with a share of it."""
    drawn = fresh
    if static.sampler.renewal is not None:
        drawn = jax.tree.map(partial(renew, share=share), last.noise, fresh)
    return jax.tree.map(partial(add_noise, sigma=sigma), last.x0, drawn)


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

    `remat` wraps the body of the scan over layers, where the step is differentiated.
    """
    prediction = _predict(params, cache, text, noisy, one_sigma(sigma[None]), positions, static, remat=remat)
    return read_velocity(noisy, Streams(prediction.video, prediction.audio), sigma, NO_CONDITIONING)


def read_velocity(noisy: Streams, velocity: Streams, sigma: Float[Array, ""], conditioning: Streams) -> CleanEstimate:
    """Turn a predicted velocity into an estimate; what is given stands in the place of its own."""
    x0 = _hold(jax.tree.map(partial(to_x0, sigma=sigma), noisy, velocity), conditioning)
    return CleanEstimate(x0=x0, noise=jax.tree.map(jnp.add, x0, velocity))


def denoise(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    noise: Streams,
    positions: BlockPositions,
    static: StaticConfig,
    conditioning: Streams = NO_CONDITIONING,
    context: Streams = NO_CONDITIONING,
) -> Streams:
    """Run the denoise steps of one block against the cache, which is only read.

    Each step noises the last clean estimate, the first one a zero, and predicts a new one. The noise is fresh, or with
    a `renewal` a share of it is, beside the last step's own estimate of it, x0 + velocity.

    Args:
        params: The network.
        cache: The stream's past; not read by block 0.
        prompt: What `make_prompt_kv` made.
        noise: Fresh noise of every step, [M, B, ...].
        positions: Of this block.
        static: What is static.
        conditioning: Clean tokens of a stream that is given. In every step it is held at the context noise level, with
            text of that sigma, as in the clean pass; what is predicted for it is ignored.
        context: The same at context noise.

    Returns:
        The clean estimates of every step, [M, B, ...]; the last one is the block.
    """
    sigmas, shares = levels(static)

    def step(last: CleanEstimate, inputs: tuple[Array, Array, Streams, Text | None]) -> tuple[CleanEstimate, Streams]:
        sigma, share, fresh, text = inputs
        noisy = _hold(renoise(last, fresh, sigma, share, static), context)
        text = _text_beside(prompt.denoise if text is None else text, prompt.clean, conditioning)
        velocity = _predict(params, cache, text, noisy, _sigmas_beside(sigma, conditioning, static), positions, static)
        last = read_velocity(noisy, Streams(velocity.video, velocity.audio), sigma, conditioning)
        return last, last.x0

    texts = prompt.denoise if prompt.per_step else None
    start = first_estimate(jax.tree.map(lambda x: x[0], noise))
    return jax.lax.scan(step, start, (sigmas, shares, noise, texts))[1]


def clean_pass(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    latents: Streams,
    noise: Streams | None,
    positions: BlockPositions,
    static: StaticConfig,
    bias: Sites | None = None,
) -> Cache:
    """Show the network the finished block at context noise and commit the keys and values that it gives.

    `noise` may be None where the context noise is 0. `bias` says which slots are read; by default those that the next
    block may see.
    """
    sigma = jnp.float32(static.sampler.context_noise)
    if noise is not None:
        latents = jax.tree.map(partial(add_noise, sigma=sigma), latents, noise)
    fresh = _predict(params, cache, prompt.clean, latents, one_sigma(sigma[None]), positions, static, bias).fresh
    return commit(cache, fresh, shift_rotations(static.model, positions.pinned_shift))


@partial(jax.jit, static_argnames="static")
def denoise_block(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    positions: BlockPositions,
    conditioning: Streams = NO_CONDITIONING,
    *,
    static: StaticConfig,
) -> Streams:
    """Denoise the next block: one program for block 0 and one for all later blocks, per choice of given streams."""
    steps = jnp.arange(static.sampler.steps)
    noise = jax.vmap(lambda step: draw_noise(keys, cache.blocks_done, step, static, positions))(steps)
    context = _at_context_noise(conditioning, draw_context_noise(keys, cache.blocks_done, static, positions), static)
    return jax.tree.map(
        lambda x: x[-1], denoise(params, cache, prompt, noise, positions, static, conditioning, context)
    )


@partial(jax.jit, static_argnames="static", donate_argnames="cache")
def commit_block(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    latents: Streams,
    positions: BlockPositions,
    *,
    static: StaticConfig,
) -> Cache:
    """Run the clean pass of a block and commit it in place: the cache that was passed in is gone."""
    noise = draw_context_noise(keys, cache.blocks_done, static, positions)
    return clean_pass(params, cache, prompt, latents, noise, positions, static)


def rollout(
    params: Transformer, prompt: PromptKV, keys: Key[Array, " B"], blocks: int, *, static: StaticConfig
) -> Streams:
    """Roll out whole clips of `blocks` blocks, one row per key: the slow and simple form of a stream."""
    cache, made = make_cache(static, len(keys)), []
    for k in range(blocks):
        positions = block_positions(static, k)
        latents = denoise_block(params, cache, prompt, keys, positions, static=static)
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
    return jax.tree.map(lambda own, known: None if known is None else add(known, own), noise, conditioning)


def _hold(latents: Streams, conditioning: Streams) -> Streams:
    """Put what is given in the place of what was made."""
    return jax.tree.map(lambda x, known: x if known is None else known, latents, conditioning)


def _sigmas_beside(sigma: Float[Array, ""], conditioning: Streams, static: StaticConfig) -> Sigmas:
    """Give each stream its noise level: a given one has that of the clean pass."""
    context = jnp.float32(static.sampler.context_noise)
    video, audio = (sigma if known is None else context for known in conditioning)
    return Sigmas(video=video[None, None], audio=audio[None, None])


def _text_beside(text: Text, clean: Text, conditioning: Streams) -> Text:
    """Let a given stream read its text as in the clean pass."""
    return Text(
        video=text.video if conditioning.video is None else clean.video,
        audio=text.audio if conditioning.audio is None else clean.audio,
        site=text.site,
    )


def _predict(
    params: Transformer,
    cache: Cache,
    text: Text,
    latents: Streams,
    sigmas: Sigmas,
    positions: BlockPositions,
    static: StaticConfig,
    bias: Sites | None = None,
    remat: Callable[..., Any] | None = None,
) -> Prediction:
    config, is_first = static.model, _is_first(static, positions)
    turned = rotaries(config, positions.tokens)
    readable = past_bias(cache) if bias is None else bias
    prefix = bias is None and cache.reads_prefix
    view = streaming(config, turned, sigmas, None if is_first else readable, prefix=prefix)
    past = NO_PAST if is_first else cache.past
    return predict(params, config, *latents, view, text, past=past, dtype=static.dtype, remat=remat)


def _is_first(static: StaticConfig, positions: BlockPositions) -> bool:
    """Tell block 0 from later blocks by its length, which always differs."""
    return len(positions.tokens.time.cos) == static.sampler.layout.first_v


def _token_counts(static: StaticConfig, positions: BlockPositions) -> tuple[int, int]:
    rows, columns = static.grid
    return len(positions.tokens.time.cos) * rows * columns, len(positions.tokens.audio_time.cos)
