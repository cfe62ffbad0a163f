"""A block of which one stream is given: what the other one sees of it, and at which noise levels."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fill
from tiny import MODERN
from tiny_stream import GRID, STATIC, TOKENS, keys, student, text

from omniforcing_jax import rollout as r
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.layout import block_of_frames
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import predict, transformer_spec
from omniforcing_jax.model.view import Sigmas, Times, bidirectional, masked, one_sigma
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.schedule import add_noise, to_x0
from omniforcing_jax.streams import Streams

SAMPLER, CONFIG = STATIC.sampler, STATIC.model
PARAMS, KEYS, PROMPT = student().transformer, keys(1), text(rows=1)
LAST = 3  # the ring of two has wrapped when it is made
BLOCKS = tuple(SAMPLER.layout.block(k) for k in range(LAST + 1))
STREAMS = ("video", "audio")


def known_tokens(positions, static=STATIC):
    """Tokens of a block that no network made."""
    return r.draw_noise(KEYS, jnp.int32(77), 0, static, positions)


def only(stream, latents):
    return r.NO_CONDITIONING._replace(**{stream: getattr(latents, stream)})


@jax.jit
def velocity_of(video, audio, levels_v, levels_a):
    video_of, audio_of = block_of_frames(BLOCKS)
    turned = rotaries(CONFIG, make_positions(CONFIG, clip_block(BLOCKS[-1].video_end, BLOCKS[-1].audio_end), GRID))
    sigmas = Sigmas(video=levels_v[video_of][None], audio=levels_a[audio_of][None])
    view = masked(CONFIG, turned, sigmas, BLOCKS, window=SAMPLER.past_blocks + 1, pinned=SAMPLER.pinned)
    return predict(PARAMS, CONFIG, Streams(video, audio), view, PROMPT.clean).velocity


@pytest.mark.parametrize("stream", STREAMS)
def test_a_given_stream_is_seen_clean_while_the_other_is_made(stream):
    """The masked clip with a noise level per token and stream is the oracle; its context is rebuilt from the keys."""
    cache, context, c = r.make_cache(STATIC, 1), [], SAMPLER.context_noise
    for k in range(LAST):
        positions = r.block_positions(STATIC, k)
        latents, cache = r.denoise_block(PARAMS, cache, PROMPT, KEYS, positions, static=STATIC)
        cache = r.commit_block(PARAMS, cache, PROMPT, KEYS, latents, positions, static=STATIC)
        noise = r.draw_noise(KEYS, jnp.int32(k), SAMPLER.steps, STATIC, positions)
        context.append([(1 - c) * x + c * n for x, n in zip(latents, noise, strict=True)])
    positions = r.block_positions(STATIC, LAST)
    known = known_tokens(positions)
    made, _ = r.denoise_block(PARAMS, cache, PROMPT, KEYS, positions, only(stream, known), static=STATIC)
    np.testing.assert_array_equal(getattr(made, stream), getattr(known, stream))

    i, starts = STREAMS.index(stream), (BLOCKS[-1].video_start * TOKENS, BLOCKS[-1].audio_start)
    own = r.draw_noise(KEYS, jnp.int32(LAST), SAMPLER.steps, STATIC, positions)
    seen = (1 - c) * known[i] + c * own[i]
    x0 = jnp.zeros_like(known[1 - i])
    for step, sigma in enumerate(SAMPLER.sigmas[:-1]):
        fresh = r.draw_noise(KEYS, jnp.int32(LAST), step, STATIC, positions)[1 - i]
        noisy = (1 - sigma) * x0 + sigma * fresh
        pair = (seen, noisy) if i == 0 else (noisy, seen)
        levels = [jnp.asarray([c] * LAST + [c if j == i else sigma], jnp.float32) for j in range(2)]
        clip = [jnp.concatenate(x, axis=1) for x in zip(*context, pair, strict=True)]
        velocity = velocity_of(*clip, *levels)[1 - i]
        x0 = to_x0(noisy, velocity[:, starts[1 - i] :], jnp.float32(sigma))
    np.testing.assert_allclose(made[1 - i], x0, atol=2e-5)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_crossing_has_the_level_that_its_semantics_ask_for(stream):
    """With levels (s, c) a crossing is driven by the stream's own level, by the other's, or by both."""
    results, i = [], STREAMS.index(stream)
    for semantics in CrossTimestep:
        config = dataclasses.replace(CONFIG, layers=1, cross_timestep=semantics)
        static = STATIC._replace(model=config, sampler=dataclasses.replace(SAMPLER, sigmas=(1.0, 0.0)))
        params, positions = fill(abstract(transformer_spec(config))), r.block_positions(static, 0)
        prompt, known = text(static, params), known_tokens(positions, static)
        cache = r.make_cache(static, 1)
        made, _ = r.denoise_block(params, cache, prompt, KEYS, positions, only(stream, known), static=static)

        own = r.draw_noise(KEYS, jnp.int32(0), static.sampler.steps, static, positions)
        fresh = r.draw_noise(KEYS, jnp.int32(0), 0, static, positions)
        noisy = fresh._replace(**{stream: add_noise(known[i], own[i], SAMPLER.context_noise)})
        levels = [jnp.full((1, 1), SAMPLER.context_noise if j == i else 1.0) for j in range(2)]
        crossing = [level if semantics is not CrossTimestep.CROSS else levels[1 - j] for j, level in enumerate(levels)]
        gates = [level if semantics is CrossTimestep.OWN else levels[1 - j] for j, level in enumerate(levels)]
        times = Streams(*map(Times, levels, crossing, gates))

        @jax.jit
        def oracle(params, noisy, times, positions=positions, config=config, prompt=prompt):
            view = bidirectional(config, rotaries(config, positions.tokens), one_sigma(jnp.ones(1)))
            view = dataclasses.replace(view, times=times)
            return predict(params, config, noisy, view, prompt.clean).velocity

        velocity = oracle(params, noisy, times)[1 - i]
        np.testing.assert_allclose(made[1 - i], fresh[1 - i] - velocity, atol=2e-5)
        results.append(np.asarray(made[1 - i]))
    assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.combinations(results, 2))


@pytest.mark.parametrize("stream", STREAMS)
def test_each_stream_reads_the_text_of_its_own_level(stream):
    """Where text keys depend on the noise level, a given stream reads those of the context noise."""
    static = STATIC._replace(model=MODERN, sampler=dataclasses.replace(SAMPLER, sigmas=(1.0, 0.0)))
    params, positions, i = fill(abstract(transformer_spec(MODERN))), r.block_positions(static, 0), STREAMS.index(stream)
    prompt, known = text(static, params), known_tokens(positions, static)
    cache = r.make_cache(static, 1)
    made, _ = r.denoise_block(params, cache, prompt, KEYS, positions, only(stream, known), static=static)

    own, fresh = (r.draw_noise(KEYS, jnp.int32(0), step, static, positions) for step in (static.sampler.steps, 0))
    levels = [SAMPLER.context_noise if j == i else 1.0 for j in range(2)]
    noisy = fresh._replace(**{stream: add_noise(known[i], own[i], levels[i])})
    first = jax.tree.map(lambda x: x[0], prompt.steps)
    texts = first.kv._replace(**{stream: getattr(prompt.clean.kv, stream)})

    @jax.jit
    def oracle(params, noisy, levels, texts):
        sigmas = Sigmas(*(level[None, None] for level in levels))
        view = bidirectional(MODERN, rotaries(MODERN, positions.tokens), sigmas)
        return predict(params, MODERN, noisy, view, Text(kv=texts, site=first.site)).velocity

    velocity = oracle(params, noisy, [jnp.float32(level) for level in levels], texts)[1 - i]
    np.testing.assert_allclose(made[1 - i], fresh[1 - i] - velocity, atol=2e-5)


def test_each_choice_of_given_streams_has_two_programs_and_no_more():
    traced = []
    count = jax.jit(lambda *args: traced.append(1) or r.denoise_block(*args, static=STATIC))
    cache = jax.eval_shape(lambda: r.make_cache(STATIC, 1))
    for k in range(6):
        positions = r.block_positions(STATIC, k)
        count.trace(PARAMS, cache, PROMPT, KEYS, positions, only("audio", known_tokens(positions)))
    assert len(traced) == 2
