"""The rollout of a causal student: denoise a block, clean pass, commit, next block.

Pure functions of one block, their two compiled programs (block 0 and later blocks have shapes of their own, so each
program is compiled twice), and a whole rollout for tests. A rollout knows no pixels and no clock of its own: the stream
(stream/chunk_stream.py) decides when a block is made and what happens to it between denoising and commit.
Source: specs/omniforcing.md 6.3, 6.4.
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


class Conditioning(NamedTuple):
    """Clean tokens of a block that are not made but known, of either stream; None is made."""

    video: Float[Array, "B T C"] | None = None
    audio: Float[Array, "B A E"] | None = None


NO_CONDITIONING = Conditioning()


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
    """What the host knows of a block: where its tokens stand, and what pinned keys turn by before the next block."""

    places: Positions
    turn: Shift


class StaticConfig(NamedTuple):
    """What is static in the programs of a stream.

    Attributes:
        config: The network.
        sampler: What makes it a student.
        grid: Latent rows and columns.
        dtype: Type to compute in.
    """

    config: ModelConfig
    sampler: SamplerConfig
    grid: tuple[int, int]
    dtype: DTypeLike = jnp.dtype(jnp.float32)


def block_positions(setting: StaticConfig, k: int) -> BlockPositions:
    """Make the tables of block k, on the host: about a millisecond, a few kilobytes."""
    config, sampler = setting.config, setting.sampler
    return BlockPositions(
        places=make_positions(config, sampler.layout.block(k), setting.grid),
        turn=shift_phases(config, sampler.shift_seconds(k + 1)),
    )


@partial(jax.jit, static_argnums=(0, 1))
def make_cache(setting: StaticConfig, batch: int) -> Cache:
    """Make the empty cache of a stream of `batch` rows, in the type that is computed in."""
    return empty_cache(setting.config, setting.sampler, setting.grid, batch, setting.dtype)


@partial(jax.jit, static_argnames="setting")
def make_prompt_kv(
    params: Transformer,
    context_video: Float[Array, "B X Cv"],
    context_audio: Float[Array, "B X Ca"],
    mask: Int[Array, "B X"] | None,
    *,
    setting: StaticConfig,
) -> PromptKV:
    """Project the contexts of a prompt to the keys and values of all layers: once per prompt."""

    def at(sigma: float) -> Text:
        sigmas = jnp.full(context_video.shape[:1], sigma, jnp.float32)
        return text_kv(params, context_video, context_audio, mask, sigma=sigmas, dtype=setting.dtype)

    clean = at(setting.sampler.context_noise)
    if not setting.config.text_adaln:
        return PromptKV(denoise=clean, clean=clean, per_step=False)
    steps = [at(sigma) for sigma in setting.sampler.sigmas[:-1]]
    return PromptKV(denoise=jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), clean=clean, per_step=True)


def draw_noise(
    keys: Key[Array, " B"],
    block: Int[Array, ""],
    step: Int[Array, ""] | int,
    setting: StaticConfig,
    like: BlockPositions,
) -> Streams:
    """Draw the noise of one denoise step: a function of (request, block, step, stream) and of nothing else.

    The clean pass has the step after the last one.
    """
    tokens_v, tokens_a = _token_counts(setting, like)
    config = setting.config

    def draw(key: Array) -> Streams:
        key = jax.random.fold_in(jax.random.fold_in(key, block), step)
        return Streams(
            video=jax.random.normal(jax.random.fold_in(key, 0), (tokens_v, config.video.latent_channels)),
            audio=jax.random.normal(jax.random.fold_in(key, 1), (tokens_a, config.audio.latent_channels)),
        )

    return jax.vmap(draw)(keys)


def draw_context_noise(
    keys: Key[Array, " B"], block: Int[Array, ""], setting: StaticConfig, like: BlockPositions
) -> Streams | None:
    """Draw the noise of a block's clean pass; None where the context noise is 0."""
    if not setting.sampler.context_noise:
        return None
    return draw_noise(keys, block, setting.sampler.steps, setting, like)


def levels(setting: StaticConfig) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Return the noise level of every denoise step and the share of its noise that is fresh."""
    renewal = setting.sampler.renewal
    shares = fresh_shares(setting.sampler.sigmas, math.inf if renewal is None else renewal)
    return jnp.asarray(setting.sampler.sigmas[:-1], jnp.float32), jnp.asarray(shares)


def first_estimate(noise: Streams) -> CleanEstimate:
    """What is known before the first step: nothing, and its noise."""
    noise = jax.tree.map(lambda x: x.astype(jnp.float32), noise)
    return CleanEstimate(x0=jax.tree.map(jnp.zeros_like, noise), noise=noise)


def renoise(
    last: CleanEstimate, fresh: Streams, sigma: Float[Array, ""], share: Float[Array, ""], setting: StaticConfig
) -> Streams:
    """Noise the last clean estimate to the next level: with fresh noise, or with a `renewal` with a share of it."""
    drawn = fresh
    if setting.sampler.renewal is not None:
        drawn = Streams(*map(partial(renew, share=share), last.noise, fresh))
    return Streams(*map(partial(add_noise, sigma=sigma), last.x0, drawn))


def denoise_step(
    params: Transformer,
    cache: Cache,
    text: Text,
    noisy: Streams,
    sigma: Float[Array, ""],
    tables: BlockPositions,
    setting: StaticConfig,
    *,
    remat: Callable[..., Any] | None = None,
) -> CleanEstimate:
    """Predict a block once, both streams at one noise level, against the cache, which is only read.

    `remat` wraps the body of the scan over layers, where the step is differentiated.
    """
    prediction = _predict(params, cache, text, noisy, one_sigma(sigma[None]), tables, setting, remat=remat)
    return read_velocity(noisy, Streams(prediction.video, prediction.audio), sigma, NO_CONDITIONING)


def read_velocity(noisy: Streams, velocity: Streams, sigma: Float[Array, ""], given: Conditioning) -> CleanEstimate:
    """Turn a predicted velocity into an estimate; what is given stands in the place of its own."""
    x0 = _hold(Streams(*map(partial(to_x0, sigma=sigma), noisy, velocity)), given)
    return CleanEstimate(x0=x0, noise=Streams(x0.video + velocity.video, x0.audio + velocity.audio))


def denoise(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    noise: Streams,
    tables: BlockPositions,
    setting: StaticConfig,
    given: Conditioning = NO_CONDITIONING,
    context: Conditioning = NO_CONDITIONING,
) -> Streams:
    """Run the denoise steps of one block against the cache, which is only read.

    Each step noises the last clean estimate, the first one a zero, and predicts a new one. The noise is fresh, or with
    a `renewal` a share of it is, beside the last step's own estimate of it, x0 + velocity.

    Args:
        params: The network.
        cache: The stream's past; not read by block 0.
        prompt: What `make_prompt` made.
        noise: Fresh noise of every step, [M, B, ...].
        tables: Of this block.
        setting: What is static.
        given: A stream that is known: it stands beside the other one as in the clean pass, at context noise and with
            text of that sigma, in every step; what is predicted for it is ignored.
        context: The same at context noise.

    Returns:
        The clean estimates of every step, [M, B, ...]; the last one is the block.
    """
    sigmas, shares = levels(setting)

    def step(last: CleanEstimate, inputs: tuple[Array, Array, Streams, Text | None]) -> tuple[CleanEstimate, Streams]:
        sigma, share, fresh, text = inputs
        noisy = _hold(renoise(last, fresh, sigma, share, setting), context)
        text = _text_beside(prompt.denoise if text is None else text, prompt.clean, given)
        velocity = _predict(params, cache, text, noisy, _sigmas_beside(sigma, given, setting), tables, setting)
        last = read_velocity(noisy, Streams(velocity.video, velocity.audio), sigma, given)
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
    tables: BlockPositions,
    setting: StaticConfig,
    bias: Sites | None = None,
) -> Cache:
    """Show the network the finished block at context noise and commit the keys and values that it gives.

    `noise` may be None where the context noise is 0. `bias` says which slots are read; by default those that the next
    block may see.
    """
    sigma = jnp.float32(setting.sampler.context_noise)
    if noise is not None:
        latents = Streams(*map(partial(add_noise, sigma=sigma), latents, noise))
    fresh = _predict(params, cache, prompt.clean, latents, one_sigma(sigma[None]), tables, setting, bias).fresh
    return commit(cache, fresh, shift_rotations(setting.config, tables.turn))


@partial(jax.jit, static_argnames="setting")
def denoise_block(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    tables: BlockPositions,
    given: Conditioning = NO_CONDITIONING,
    *,
    setting: StaticConfig,
) -> Streams:
    """Denoise the next block: one program for block 0 and one for all later blocks, per choice of given streams."""
    steps = jnp.arange(setting.sampler.steps)
    noise = jax.vmap(lambda step: draw_noise(keys, cache.blocks_done, step, setting, tables))(steps)
    context = _at_context_noise(given, draw_context_noise(keys, cache.blocks_done, setting, tables), setting)
    return jax.tree.map(lambda x: x[-1], denoise(params, cache, prompt, noise, tables, setting, given, context))


@partial(jax.jit, static_argnames="setting", donate_argnames="cache")
def commit_block(
    params: Transformer,
    cache: Cache,
    prompt: PromptKV,
    keys: Key[Array, " B"],
    latents: Streams,
    tables: BlockPositions,
    *,
    setting: StaticConfig,
) -> Cache:
    """Run the clean pass of a block and commit it in place: the cache that was passed in is gone."""
    noise = draw_context_noise(keys, cache.blocks_done, setting, tables)
    return clean_pass(params, cache, prompt, latents, noise, tables, setting)


def rollout(
    params: Transformer, prompt: PromptKV, keys: Key[Array, " B"], blocks: int, *, setting: StaticConfig
) -> Streams:
    """Roll out whole clips of `blocks` blocks, one row per key: the slow and simple form of a stream."""
    cache, made = make_cache(setting, len(keys)), []
    for k in range(blocks):
        tables = block_positions(setting, k)
        latents = denoise_block(params, cache, prompt, keys, tables, setting=setting)
        cache = commit_block(params, cache, prompt, keys, latents, tables, setting=setting)
        made.append(latents)
    return Streams(*(jnp.concatenate(pieces, axis=1) for pieces in zip(*made, strict=True)))


def to_frames(video: Float[Array, "B T C"], grid: tuple[int, int]) -> Float[Array, "B F h w C"]:
    """Cut video tokens into latent frames."""
    return video.reshape(video.shape[0], -1, *grid, video.shape[-1])


def _at_context_noise(given: Conditioning, noise: Streams | None, setting: StaticConfig) -> Conditioning:
    if noise is None:
        return given
    add = partial(add_noise, sigma=setting.sampler.context_noise)
    return Conditioning(*(None if known is None else add(known, own) for known, own in zip(given, noise, strict=True)))


def _hold(latents: Streams, given: Conditioning) -> Streams:
    """Put what is given in the place of what was made."""
    return Streams(*(x if known is None else known for x, known in zip(latents, given, strict=True)))


def _sigmas_beside(sigma: Float[Array, ""], given: Conditioning, setting: StaticConfig) -> Sigmas:
    """Give each stream its noise level: a given one has that of the clean pass."""
    context = jnp.float32(setting.sampler.context_noise)
    video, audio = (sigma if known is None else context for known in given)
    return Sigmas(video=video[None, None], audio=audio[None, None])


def _text_beside(text: Text, clean: Text, given: Conditioning) -> Text:
    """Let a given stream read its text as in the clean pass."""
    return Text(
        video=text.video if given.video is None else clean.video,
        audio=text.audio if given.audio is None else clean.audio,
        site=text.site,
    )


def _predict(
    params: Transformer,
    cache: Cache,
    text: Text,
    latents: Streams,
    sigmas: Sigmas,
    tables: BlockPositions,
    setting: StaticConfig,
    bias: Sites | None = None,
    remat: Callable[..., Any] | None = None,
) -> Prediction:
    config, is_first = setting.config, _is_first(setting, tables)
    turned = rotaries(config, tables.places)
    readable = past_bias(cache) if bias is None else bias
    prefix = bias is None and cache.reads_prefix
    view = streaming(config, turned, sigmas, None if is_first else readable, prefix=prefix)
    past = NO_PAST if is_first else cache.past
    return predict(params, config, *latents, view, text, past=past, dtype=setting.dtype, remat=remat)


def _is_first(setting: StaticConfig, tables: BlockPositions) -> bool:
    """Tell block 0 from later blocks by its length, which always differs."""
    return len(tables.places.time.cos) == setting.sampler.layout.first_v


def _token_counts(setting: StaticConfig, tables: BlockPositions) -> tuple[int, int]:
    rows, columns = setting.grid
    return len(tables.places.time.cos) * rows * columns, len(tables.places.audio_time.cos)
