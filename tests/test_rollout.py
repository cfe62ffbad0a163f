"""The rollout: what a block depends on, and that however it is cut, batched or compiled it stays the same."""

import dataclasses
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from phases import moved_later
from random_weights import fill
from tiny import AS_USERS_DO, MODERN, NEWEST
from tiny_stream import GRID, STATIC, TOKENS, keys, student, text

from omniforcing_jax import rollout as r
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.layout import PREFIX2, block_of_frames
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries, shift_rotations
from omniforcing_jax.model.transformer import predict, text_kv, transformer_spec
from omniforcing_jax.model.view import Sigmas, hold_scalars, masked, one_sigma, streaming
from omniforcing_jax.nn.rope import rotate
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.streams import Streams

SAMPLER, CONFIG = STATIC.sampler, STATIC.model
PARAMS = student().transformer
KEYS = keys(2)
PROMPT = text(rows=2)


def newer_student():
    """An LTX-2.3 student as EchoWM's: text and crossings at one level, two audio latents in block 0, pinned blocks."""
    model = dataclasses.replace(MODERN, cross_timestep=CrossTimestep.CROSS)
    sampler = dataclasses.replace(SAMPLER, layout=PREFIX2, pinned=2, window=2, scalar_sigma=0.9)
    static = STATIC._replace(model=model, sampler=sampler)
    params = fill(abstract(transformer_spec(model)))
    return static, params, text(static, params, rows=2)


@pytest.mark.parametrize("student", [lambda: (STATIC, PARAMS, PROMPT), newer_student])
def test_a_block_is_the_last_slice_of_a_masked_clip_over_its_own_context(student):
    """Prefix rerun: context noise and clean estimates are rebuilt from the keys alone."""
    static, params, prompt = student()
    last, sampler = 3, static.sampler
    layout = sampler.layout
    made = r.rollout(params, prompt, KEYS, last + 1, static=static)
    blocks = tuple(layout.block(k) for k in range(last + 1))
    context, noise = [], None
    for k, block in enumerate(blocks):
        positions = r.block_positions(static, k)
        own = Streams(
            made.video[:, block.video_start * TOKENS : block.video_end * TOKENS],
            made.audio[:, block.audio_start : block.audio_end],
        )
        noise = r.draw_noise(KEYS, jnp.int32(k), sampler.steps, static, positions)
        c = sampler.context_noise
        context.append([(1 - c) * x + c * n for x, n in zip(own, noise, strict=True)])

    whole_positions = make_positions(static.model, clip_block(blocks[-1].video_end, blocks[-1].audio_end), GRID)
    video_of, audio_of = block_of_frames(blocks)

    @jax.jit
    def velocity_of(video, audio, levels):
        sigmas = Sigmas(video=levels[video_of][None], audio=levels[audio_of][None])
        sigmas = hold_scalars(sigmas, sampler.scalar_sigma)
        reach = {"window": sampler.past_blocks + 1, "pinned": sampler.pinned}
        view = masked(static.model, rotaries(static.model, whole_positions), sigmas, blocks, **reach)
        return predict(params, static.model, Streams(video, audio), view, prompt.clean).velocity

    x0 = [jnp.zeros_like(x) for x in context[last]]
    for step, sigma in enumerate(sampler.sigmas[:-1]):
        fresh = r.draw_noise(KEYS, jnp.int32(last), step, static, positions)
        noisy = [(1 - sigma) * x + sigma * n for x, n in zip(x0, fresh, strict=True)]
        video, audio = (jnp.concatenate(x, axis=1) for x in zip(*context[:last], noisy, strict=True))
        levels = jnp.asarray([sampler.context_noise] * last + [sigma], jnp.float32)
        velocity = velocity_of(video, audio, levels)
        x0 = [
            to_x0(noisy[0], velocity.video[:, blocks[last].video_start * TOKENS :], jnp.float32(sigma)),
            to_x0(noisy[1], velocity.audio[:, blocks[last].audio_start :], jnp.float32(sigma)),
        ]
    np.testing.assert_allclose(made.video[:, blocks[last].video_start * TOKENS :], x0[0], atol=2e-5)
    np.testing.assert_allclose(made.audio[:, blocks[last].audio_start :], x0[1], atol=2e-5)


def test_pinned_keys_are_seen_where_each_block_wants_them_within_and_beyond_the_horizon():
    """The horizon is 3 s: block 4 is the first that wants them one second later."""
    for k, seconds in enumerate([0, 0, 0, 0, 1, 2]):
        turns = shift_rotations(CONFIG, r.block_positions(STATIC, k).pinned_shift)
        for name in ("video_self", "audio_self", "a2v", "v2a"):
            model = CONFIG.video if name == "video_self" else CONFIG.audio
            keys = jnp.asarray(
                np.random.default_rng(k).normal(size=(1, 1, 5, model.heads, model.head_size)), jnp.float32
            )
            expected = moved_later(keys, seconds, axes=3 if name == "video_self" else 1)
            found = rotate(keys, getattr(turns, name))
            np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{name} before block {k}")


def test_renewing_no_noise_makes_every_step_eulers():
    sigmas = (1.0, 0.7, 0.3, 0.0)
    static = STATIC._replace(sampler=dataclasses.replace(SAMPLER, renewal=0.0, sigmas=sigmas))
    positions, cache = r.block_positions(static, 0), r.make_cache(static, 2)
    made, _ = r.denoise_block(PARAMS, cache, PROMPT, KEYS, positions, static=static)

    @jax.jit
    def velocity_at(x, sigma):
        view = streaming(CONFIG, rotaries(CONFIG, positions.tokens), one_sigma(jnp.full(2, sigma)), None)
        return predict(PARAMS, CONFIG, x, view, PROMPT.clean).velocity

    x = r.draw_noise(KEYS, jnp.int32(0), 0, static, positions)
    for sigma, after in itertools.pairwise(sigmas):
        velocity = velocity_at(x, jnp.float32(sigma))
        x = Streams(x.video + (after - sigma) * velocity.video, x.audio + (after - sigma) * velocity.audio)
    np.testing.assert_allclose(made.video, x.video, atol=2e-5)
    np.testing.assert_allclose(made.audio, x.audio, atol=2e-5)


def test_renewing_all_noise_is_what_happens_without_a_number():
    plain, renewed = (STATIC._replace(sampler=dataclasses.replace(SAMPLER, renewal=x)) for x in (None, 1e9))
    one, other = (
        r.denoise_block(PARAMS, r.make_cache(s, 2), PROMPT, KEYS, r.block_positions(s, 0), static=s)[0]
        for s in (plain, renewed)
    )
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_rows_of_a_batch_are_the_streams_of_their_keys():
    both = r.rollout(PARAMS, PROMPT, KEYS, 3, static=STATIC)
    second = jax.tree.map(lambda x: x[:, 1:] if x.ndim == 5 else x[1:], PROMPT)
    alone = r.rollout(PARAMS, second, KEYS[1:], 3, static=STATIC)
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_allclose(one[1:], other, atol=1e-5)


def test_noise_is_another_for_every_request_block_step_and_stream():
    steady = [r.block_positions(STATIC, k) for k in (1, 2)]
    drawn = [
        np.asarray(x[row, :1, :1]).item()
        for k, positions in enumerate(steady, 1)
        for step in range(3)
        for x in r.draw_noise(KEYS, jnp.int32(k), step, STATIC, positions)
        for row in range(2)
    ]
    assert len(set(drawn)) == 2 * 3 * 2 * 2


def test_a_longer_rollout_begins_with_the_shorter_one():
    short, long = (r.rollout(PARAMS, PROMPT, KEYS, blocks, static=STATIC) for blocks in (2, 4))
    for one, other in zip(short, long, strict=True):
        np.testing.assert_array_equal(one, other[:, : one.shape[1]])


def test_two_kinds_of_block_are_traced_and_no_more():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2)
    def one_block(cache, positions):
        latents, cache = r.denoise_block(PARAMS, cache, PROMPT, KEYS, positions, static=STATIC)
        return r.commit_block(PARAMS, cache, PROMPT, KEYS, latents, positions, static=STATIC)

    cache = r.make_cache(STATIC, 2)
    for k in range(8):
        assert one_block.trace(cache, r.block_positions(STATIC, k)).out_info.blocks_done.shape == ()


def test_text_that_depends_on_sigma_is_projected_once_per_step():
    static = STATIC._replace(model=MODERN)
    params = fill(abstract(transformer_spec(MODERN)))
    prompt = text(static, params, 2)
    assert prompt.steps.kv.video.k.shape == (SAMPLER.steps, *prompt.clean.kv.video.k.shape)
    swapped = prompt.replace(steps=jax.tree.map(lambda x: x[::-1], prompt.steps))
    positions = r.block_positions(static, 0)
    one, other = (
        r.denoise_block(params, r.make_cache(static, 2), text, KEYS, positions, static=static)[0].video
        for text in (prompt, swapped)
    )
    assert np.isfinite(one).all()
    assert not np.allclose(one, other)


def test_text_adaln_without_a_level_is_projected_once_per_prompt():
    static = STATIC._replace(model=NEWEST)
    params = abstract(transformer_spec(NEWEST))
    assert params.video.prompt_time is None
    assert jax.eval_shape(lambda p: text(static, p, 2), params).steps is None


def modern():
    """A student whose text keys depend on the noise level: setting, weights, contexts without a mask, prompt."""
    static = STATIC._replace(model=MODERN)
    params, rng = fill(abstract(transformer_spec(MODERN))), np.random.default_rng(3)
    widths = MODERN.video.width, MODERN.audio.width
    contexts = [jnp.asarray(rng.normal(size=(2, 6, width)), jnp.float32) for width in widths]
    return static, params, contexts, r.make_prompt_kv(params, *contexts, None, static=static)


def test_text_keys_are_those_of_every_steps_own_level_and_of_the_context_noise():
    _, params, contexts, prompt = modern()
    at = jax.jit(lambda sigma: text_kv(params, *contexts, sigma=sigma))
    steps = [jax.tree.map(lambda x, i=i: x[i], prompt.steps) for i in range(SAMPLER.steps)]
    for sigma, made in zip((*SAMPLER.sigmas[:-1], SAMPLER.context_noise), (*steps, prompt.clean), strict=True):
        expected = at(jnp.full(2, sigma))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), made, expected)


def test_text_keys_at_a_scalar_sigma_are_made_once():
    static, params, contexts, _ = modern()
    static = static._replace(sampler=dataclasses.replace(SAMPLER, scalar_sigma=0.9))
    prompt = r.make_prompt_kv(params, *contexts, None, static=static)
    expected = jax.jit(lambda sigma: text_kv(params, *contexts, sigma=sigma))(jnp.full(2, 0.9))
    assert prompt.steps is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), prompt.clean, expected)


def test_the_clean_pass_reads_the_text_of_the_context_noise():
    static, params, _, prompt = modern()
    positions, c = r.block_positions(static, 0), SAMPLER.context_noise
    latents, noise = (r.draw_noise(KEYS, jnp.int32(0), step, static, positions) for step in (0, SAMPLER.steps))
    made = r.commit_block(params, r.make_cache(static, 2), prompt, KEYS, latents, positions, static=static)

    @jax.jit
    def fresh(noisy, text):
        view = streaming(MODERN, rotaries(MODERN, positions.tokens), one_sigma(jnp.full(2, c)), None)
        return predict(params, MODERN, noisy, view, text).fresh

    expected = fresh(jax.tree.map(lambda x, n: (1 - c) * x + c * n, latents, noise), prompt.clean)
    for name in ("video_self", "audio_self", "a2v", "v2a"):
        own = getattr(expected, name).k
        np.testing.assert_allclose(getattr(made.past, name).pinned.k, own, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("pin", [True, False])
def test_slots_are_said_to_come_first_only_where_block_0_stays(pin, monkeypatch):
    """Kernels read as many slots as may be seen, from the first on, of a past that is said to be a prefix."""
    said = []
    monkeypatch.setattr(r, "streaming", lambda *args: said.append(args[3].v2a.is_prefix) or streaming(*args))
    static = STATIC._replace(sampler=dataclasses.replace(SAMPLER, pinned=int(pin)))
    positions, sigma = r.block_positions(static, 1), jnp.float32(0.5)
    noisy = r.draw_noise(KEYS, jnp.int32(1), 0, static, positions)
    cache = jax.eval_shape(lambda: r.make_cache(static, 2))
    jax.eval_shape(lambda cache: r.denoise_step(PARAMS, cache, PROMPT.clean, noisy, sigma, positions, static), cache)
    assert said == [pin]


@pytest.mark.parametrize("program", ["denoise", "commit"])
def test_the_compiled_steady_step_copies_no_cache(program):
    """CPU transposes the keys of one layer for its matmul; what is as large as a site of all layers is a copy."""
    config = dataclasses.replace(CONFIG, layers=8)
    static = STATIC._replace(model=config, sampler=dataclasses.replace(SAMPLER, horizon_seconds=60, window=0))
    params, positions = abstract(transformer_spec(config)), r.block_positions(static, 1)
    cache = jax.eval_shape(lambda: r.make_cache(static, 2))
    prompt = jax.eval_shape(lambda p: text(static, p, 2), params)
    if program == "denoise":
        lowered = r.denoise_block.lower(params, cache, prompt, KEYS, positions, static=static)
    else:
        latents = r.draw_noise(KEYS, jnp.int32(1), 0, static, positions)
        lowered = r.commit_block.lower(params, cache, prompt, KEYS, latents, positions, static=static)
    site = min(getattr(cache.past, name).ring.k.size for name in ("video_self", "audio_self", "a2v", "v2a"))
    made = re.findall(
        r"= \w+\[([\d,]+)\][^=]* (?:copy|concatenate|transpose)\(", lowered.compile(AS_USERS_DO).as_text()
    )
    assert made
    assert not [shape for shape in made if np.prod([int(n) for n in shape.split(",")]) >= site]
