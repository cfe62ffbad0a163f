"""The rollout of a causal student: denoise a block, clean pass, commit, next block.

Pure functions of one block, their two compiled programs (block 0 and later blocks have shapes of their own, so each
program is compiled twice), and a whole rollout for tests. A rollout knows no pixels and no clock of its own: the stream
(stream/sampler.py) decides when a block is made and what happens to it between denoising and commit.
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

from omniforcing_jax.cache import Cache, commit, empty_cache, past_bias
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.place import Places, Turn, place, rotaries, turn_by, turning
from omniforcing_jax.model.transformer import Prediction, Transformer, predict, text_kv
from omniforcing_jax.model.view import Sigmas, one_sigma, streaming
from omniforcing_jax.nn.attention import NO_PAST, Sites
from omniforcing_jax.schedule import add_noise, fresh_shares, renew, to_x0


class Latents(NamedTuple):
    """Tokens of both streams, [..., B, T, C] and [..., B, A, E], float32; the audio is without sinks."""

    video: Float[Array, "... B T C"]
    audio: Float[Array, "... B A E"]


class Estimate(NamedTuple):
    """What a denoise step knows of its block: the clean tokens, and the noise that hides them."""

    x0: Latents
    noise: Latents


class Given(NamedTuple):
    """Clean tokens of a block that are not made but known, of either stream; None is made."""

    video: Float[Array, "B T C"] | None = None
    audio: Float[Array, "B A E"] | None = None


NONE_GIVEN = Given()


@struct.dataclass
class Prompt:
    """Text keys and values of a prompt: for the denoise steps and for the clean pass.

    With text AdaLN they depend on sigma, and `denoise` has a leading axis of denoise steps; without, both are one.
    """

    denoise: Text
    clean: Text
    per_step: bool = struct.field(pytree_node=False)


@struct.dataclass
class Tables:
    """What the host knows of a block: where its tokens stand, and what pinned keys turn by before the next block."""

    places: Places
    turn: Turn


class Setting(NamedTuple):
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


def make_tables(setting: Setting, k: int) -> Tables:
    """Make the tables of block k, on the host: about a millisecond, a few kilobytes."""
    config, sampler = setting.config, setting.sampler
    return Tables(
        places=place(config, sampler.layout.block(k), setting.grid),
        turn=turn_by(config, sampler.shift_seconds(k + 1)),
    )


@partial(jax.jit, static_argnums=(0, 1))
def make_cache(setting: Setting, batch: int) -> Cache:
    """Make the empty cache of a stream of `batch` rows, in the type that is computed in."""
    return empty_cache(setting.config, setting.sampler, setting.grid, batch, setting.dtype)


@partial(jax.jit, static_argnames="setting")
def make_prompt(
    params: Transformer,
    context_video: Float[Array, "B X Cv"],
    context_audio: Float[Array, "B X Ca"],
    mask: Int[Array, "B X"] | None,
    *,
    setting: Setting,
) -> Prompt:
    """Project the contexts of a prompt to the keys and values of all layers: once per prompt."""

    def at(sigma: float) -> Text:
        sigmas = jnp.full(context_video.shape[:1], sigma, jnp.float32)
        return text_kv(params, context_video, context_audio, mask, sigma=sigmas, dtype=setting.dtype)

    clean = at(setting.sampler.context_noise)
    if not setting.config.text_adaln:
        return Prompt(denoise=clean, clean=clean, per_step=False)
    steps = [at(sigma) for sigma in setting.sampler.sigmas[:-1]]
    return Prompt(denoise=jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), clean=clean, per_step=True)


def draw_noise(
    keys: Key[Array, " B"], block: Int[Array, ""], step: Int[Array, ""] | int, setting: Setting, like: Tables
) -> Latents:
    """Draw the noise of one denoise step: a function of (request, block, step, stream) and of nothing else.

    The clean pass has the step after the last one.
    """
    tokens_v, tokens_a = _token_counts(setting, like)
    config = setting.config

    def draw(key: Array) -> Latents:
        key = jax.random.fold_in(jax.random.fold_in(key, block), step)
        return Latents(
            video=jax.random.normal(jax.random.fold_in(key, 0), (tokens_v, config.video.latent_channels)),
            audio=jax.random.normal(jax.random.fold_in(key, 1), (tokens_a, config.audio.latent_channels)),
        )

    return jax.vmap(draw)(keys)


def draw_context_noise(keys: Key[Array, " B"], block: Int[Array, ""], setting: Setting, like: Tables) -> Latents | None:
    """Draw the noise of a block's clean pass; None where the context noise is 0."""
    if not setting.sampler.context_noise:
        return None
    return draw_noise(keys, block, setting.sampler.steps, setting, like)


def levels(setting: Setting) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Return the noise level of every denoise step and the share of its noise that is fresh."""
    renewal = setting.sampler.renewal
    shares = fresh_shares(setting.sampler.sigmas, math.inf if renewal is None else renewal)
    return jnp.asarray(setting.sampler.sigmas[:-1], jnp.float32), jnp.asarray(shares)


def first_estimate(noise: Latents) -> Estimate:
    """What is known before the first step: nothing, and its noise."""
    noise = jax.tree.map(lambda x: x.astype(jnp.float32), noise)
    return Estimate(x0=jax.tree.map(jnp.zeros_like, noise), noise=noise)


def renoise(
    last: Estimate, fresh: Latents, sigma: Float[Array, ""], share: Float[Array, ""], setting: Setting
) -> Latents:
    """Noise the last clean estimate to the next level: with fresh noise, or with a `renewal` with a share of it."""
    drawn = fresh
    if setting.sampler.renewal is not None:
        drawn = Latents(*map(partial(renew, share=share), last.noise, fresh))
    return Latents(*map(partial(add_noise, sigma=sigma), last.x0, drawn))


def denoise_step(
    params: Transformer,
    cache: Cache,
    text: Text,
    noisy: Latents,
    sigma: Float[Array, ""],
    tables: Tables,
    setting: Setting,
    *,
    remat: Callable[..., Any] | None = None,
) -> Estimate:
    """Predict a block once, both streams at one noise level, against the cache, which is only read.

    `remat` wraps the body of the scan over layers, where the step is differentiated.
    """
    prediction = _predict(params, cache, text, noisy, one_sigma(sigma[None]), tables, setting, remat=remat)
    return read_velocity(noisy, Latents(prediction.video, prediction.audio), sigma, NONE_GIVEN)


def read_velocity(noisy: Latents, velocity: Latents, sigma: Float[Array, ""], given: Given) -> Estimate:
    """Turn a predicted velocity into an estimate; what is given stands in the place of its own."""
    x0 = _hold(Latents(*map(partial(to_x0, sigma=sigma), noisy, velocity)), given)
    return Estimate(x0=x0, noise=Latents(x0.video + velocity.video, x0.audio + velocity.audio))


def denoise(
    params: Transformer,
    cache: Cache,
    prompt: Prompt,
    noise: Latents,
    tables: Tables,
    setting: Setting,
    given: Given = NONE_GIVEN,
    context: Given = NONE_GIVEN,
) -> Latents:
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

    def step(last: Estimate, inputs: tuple[Array, Array, Latents, Text | None]) -> tuple[Estimate, Latents]:
        sigma, share, fresh, text = inputs
        noisy = _hold(renoise(last, fresh, sigma, share, setting), context)
        text = _text_beside(prompt.denoise if text is None else text, prompt.clean, given)
        velocity = _predict(params, cache, text, noisy, _sigmas_beside(sigma, given, setting), tables, setting)
        last = read_velocity(noisy, Latents(velocity.video, velocity.audio), sigma, given)
        return last, last.x0

    texts = prompt.denoise if prompt.per_step else None
    start = first_estimate(jax.tree.map(lambda x: x[0], noise))
    return jax.lax.scan(step, start, (sigmas, shares, noise, texts))[1]


def clean_pass(
    params: Transformer,
    cache: Cache,
    prompt: Prompt,
    latents: Latents,
    noise: Latents | None,
    tables: Tables,
    setting: Setting,
    bias: Sites | None = None,
) -> Cache:
    """Show the network the finished block at context noise and commit the keys and values that it gives.

    `noise` may be None where the context noise is 0. `bias` says which slots are read; by default those that the next
    block may see.
    """
    sigma = jnp.float32(setting.sampler.context_noise)
    if noise is not None:
        latents = Latents(*map(partial(add_noise, sigma=sigma), latents, noise))
    fresh = _predict(params, cache, prompt.clean, latents, one_sigma(sigma[None]), tables, setting, bias).fresh
    return commit(cache, fresh, turning(setting.config, tables.turn))


@partial(jax.jit, static_argnames="setting")
def denoise_block(
    params: Transformer,
    cache: Cache,
    prompt: Prompt,
    keys: Key[Array, " B"],
    tables: Tables,
    given: Given = NONE_GIVEN,
    *,
    setting: Setting,
) -> Latents:
    """Denoise the next block: one program for block 0 and one for all later blocks, per choice of given streams."""
    steps = jnp.arange(setting.sampler.steps)
    noise = jax.vmap(lambda step: draw_noise(keys, cache.blocks_done, step, setting, tables))(steps)
    context = _at_context_noise(given, draw_context_noise(keys, cache.blocks_done, setting, tables), setting)
    return jax.tree.map(lambda x: x[-1], denoise(params, cache, prompt, noise, tables, setting, given, context))


@partial(jax.jit, static_argnames="setting", donate_argnames="cache")
def commit_block(
    params: Transformer,
    cache: Cache,
    prompt: Prompt,
    keys: Key[Array, " B"],
    latents: Latents,
    tables: Tables,
    *,
    setting: Setting,
) -> Cache:
    """Run the clean pass of a block and commit it in place: the cache that was passed in is gone."""
    noise = draw_context_noise(keys, cache.blocks_done, setting, tables)
    return clean_pass(params, cache, prompt, latents, noise, tables, setting)


def rollout(params: Transformer, prompt: Prompt, keys: Key[Array, " B"], blocks: int, *, setting: Setting) -> Latents:
    """Roll out whole clips of `blocks` blocks, one row per key: the slow and simple form of a stream."""
    cache, made = make_cache(setting, len(keys)), []
    for k in range(blocks):
        tables = make_tables(setting, k)
        latents = denoise_block(params, cache, prompt, keys, tables, setting=setting)
        cache = commit_block(params, cache, prompt, keys, latents, tables, setting=setting)
        made.append(latents)
    return Latents(*(jnp.concatenate(pieces, axis=1) for pieces in zip(*made, strict=True)))


def to_frames(video: Float[Array, "B T C"], grid: tuple[int, int]) -> Float[Array, "B F h w C"]:
    """Cut video tokens into latent frames."""
    return video.reshape(video.shape[0], -1, *grid, video.shape[-1])


def _at_context_noise(given: Given, noise: Latents | None, setting: Setting) -> Given:
    if noise is None:
        return given
    add = partial(add_noise, sigma=setting.sampler.context_noise)
    return Given(*(None if known is None else add(known, own) for known, own in zip(given, noise, strict=True)))


def _hold(latents: Latents, given: Given) -> Latents:
    """Put what is given in the place of what was made."""
    return Latents(*(x if known is None else known for x, known in zip(latents, given, strict=True)))


def _sigmas_beside(sigma: Float[Array, ""], given: Given, setting: Setting) -> Sigmas:
    """Give each stream its noise level: a given one has that of the clean pass."""
    context = jnp.float32(setting.sampler.context_noise)
    video, audio = (sigma if known is None else context for known in given)
    return Sigmas(video=video[None, None], audio=audio[None, None])


def _text_beside(text: Text, clean: Text, given: Given) -> Text:
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
    latents: Latents,
    sigmas: Sigmas,
    tables: Tables,
    setting: Setting,
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


def _is_first(setting: Setting, tables: Tables) -> bool:
    """Tell block 0 from later blocks by its length, which always differs."""
    return len(tables.places.time.cos) == setting.sampler.layout.first_v


def _token_counts(setting: Setting, tables: Tables) -> tuple[int, int]:
    rows, columns = setting.grid
    return len(tables.places.time.cos) * rows * columns, len(tables.places.audio_time.cos)
