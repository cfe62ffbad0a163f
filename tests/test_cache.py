import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import FUSED, PREFIX
from omniforcing_jax.model.cache import Slots, commit, empty_cache, past_bias, readable_range
from omniforcing_jax.model.positions import make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.model.transformer import predict
from omniforcing_jax.model.view import one_sigma, streaming
from omniforcing_jax.nn.attention import KV, Sites
from tests.phases import moved_later
from tests.tiny import AS_USERS_DO, BATCH, GRID, SINKS, TINY, TOKENS, random_latents, random_params, random_text

NAMES = ("video_self", "audio_self", "a2v", "v2a")


def sampler(**changes):
    return SamplerConfig(sigmas=(1.0, 0.0), horizon_seconds=5, **changes)


def marked(config, cache, k):
    """Keys and values of block k, with k as every value; those of sinks are -1."""
    block = PREFIX.block(k)
    tokens = {"video": block.video_frames * TOKENS, "audio": block.audio_frames}
    sinks = config.sinks if k == 0 else 0

    def kv(audio, old):
        marks = np.full(tokens["audio" if audio else "video"] + (sinks if audio else 0), k, np.float32)
        marks[: sinks if audio else 0] = -1
        x = jnp.broadcast_to(marks[None, None, :, None, None], (*old.k.shape[:2], len(marks), *old.k.shape[3:]))
        return KV(x + 10, x)  # no key is zero, so that turning shows

    return jax.tree.map(kv, Sites.of_keys(False, True), cache.past)


commit_one = jax.jit(commit)


def after(config, blocks, **changes):
    cache = empty_cache(config, sampler(**changes), GRID, 1)
    for k in range(blocks):
        cache = commit_one(cache, marked(config, cache, k))
    return cache


def seen(cache, name):
    """Blocks that the next block may read at a site, by slot."""
    marks = np.asarray(getattr(cache.past, name).v[0, 0, :, 0, 0])
    return marks[np.asarray(getattr(past_bias(cache), name)).reshape(-1) == 0]


def expected(config, blocks, window, pin, audio):
    kept = [k for k in range(blocks) if blocks - k < window or (k == 0 and pin)]
    sizes = [PREFIX.block(k).audio_frames if audio else PREFIX.block(k).video_frames * TOKENS for k in kept]
    marks = np.repeat(kept, sizes).tolist()
    return sorted(marks + [-1] * (config.sinks if audio and blocks else 0))


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_next_block_may_read_just_its_window_and_what_is_pinned(window, pin):
    cache = empty_cache(SINKS, sampler(window=window, pin_prefix=pin), GRID, 1)
    for blocks in range(8):
        for name in NAMES:
            audio = name in ("audio_self", "a2v")
            assert sorted(seen(cache, name).tolist()) == expected(SINKS, blocks, window, pin, audio)
        cache = commit_one(cache, marked(SINKS, cache, blocks))


def test_readable_slots_are_a_prefix_while_block_0_is_pinned():
    slots = Slots(first=6, sinks=2, step=18, ring=3, pinned=8)
    ends = [tuple(int(x) for x in readable_range(slots, jnp.int32(k))) for k in range(7)]
    assert ends == [(0, 0), (0, 8), (0, 26), (0, 44), (0, 62), (0, 62), (0, 62)]


def test_an_unpinned_block_0_drops_off_the_front():
    slots = Slots(first=6, sinks=2, step=18, ring=2, pinned=2)
    starts = [int(readable_range(slots, jnp.int32(k))[0]) for k in range(6)]
    assert starts == [0, 0, 0, 6, 6, 6]


def test_a_block_lies_in_its_ring_slot():
    cache = after(TINY, 6, window=4)  # ring of three
    marks = np.asarray(cache.past.video_self.v[0, 0, TOKENS:, 0, 0]).reshape(3, -1)
    assert [set(row) for row in marks] == [{4.0}, {5.0}, {3.0}]


def test_a_cache_without_ring_keeps_block_0_only():
    cache = after(TINY, 4, window=1)
    assert cache.past.video_self.k.shape[2] == TOKENS
    assert int(cache.blocks_done) == 4
    assert set(seen(cache, "v2a").tolist()) == {0.0}


def test_a_block_of_the_wrong_length_is_refused():
    cache = empty_cache(TINY, sampler(), GRID, 1)
    wrong = dataclasses.replace(marked(TINY, cache, 1), audio_self=marked(TINY, cache, 0).audio_self)
    with pytest.raises(ValueError, match=r"fresh: \(18, 1\) tokens, but block 0 has \(6, 1\)"):
        commit(cache, wrong)


def test_as_many_sinks_as_a_blocks_audio_confuse_nobody():
    config = dataclasses.replace(TINY, sinks=24)  # block 0 then has 25 audio tokens, as later blocks have
    cache = after(config, 3)
    assert sorted(set(seen(cache, "audio_self").tolist())) == [-1.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize(("pin", "moved"), [(True, {-1.0, 0.0}), (False, {-1.0})])
def test_pinned_keys_and_only_they_are_turned_and_always_from_their_first_place(pin, moved):
    cache = after(SINKS, 3, pin_prefix=pin)
    third, fourth = marked(SINKS, cache, 3), marked(SINKS, cache, 4)
    turns = [shift_rotations(SINKS, shift_phases(SINKS, seconds)) for seconds in (0, 1, 2)]
    turned = commit_one(commit_one(cache, third, turns[1]), fourth, turns[2])
    once = commit_one(commit_one(cache, third, turns[0]), fourth, turns[2])
    still = commit_one(commit_one(cache, third, turns[0]), fourth, turns[0])
    for name in NAMES:
        a, b, c = (np.asarray(getattr(x.past, name).k[0, 0]) for x in (turned, once, still))
        np.testing.assert_array_equal(a, b)
        marks = np.asarray(getattr(still.past, name).v[0, 0, :, 0, 0])
        audio = name in ("audio_self", "a2v")
        assert set(marks[np.any(a != c, axis=(1, 2))].tolist()) == (moved if audio else moved - {-1.0})


@pytest.mark.parametrize(("layout", "horizon", "shifts"), [(PREFIX, 1, [0, 1, 2, 3]), (FUSED, 1, [1, 2, 3, 4])])
def test_pinned_keys_lie_where_the_next_block_reads_them_as_soon_as_a_block_is_committed(layout, horizon, shifts):
    s = SamplerConfig(sigmas=(1.0, 0.0), layout=layout, horizon_seconds=horizon)
    cache, first = empty_cache(SINKS, s, GRID, 1), None
    for k, seconds in enumerate(shifts):
        fresh = random_fresh(SINKS, layout.block(k), seed=k)
        first = first or fresh
        cache = commit_one(cache, fresh, shift_rotations(SINKS, shift_phases(SINKS, seconds)))
        for name in NAMES:
            own = np.roll(getattr(first, name).k, -SINKS.sinks if name in ("audio_self", "a2v") else 0, axis=2)
            found = getattr(cache.past, name).k[:, :, : own.shape[2]]
            expected = moved_later(own, seconds, axes=3 if name == "video_self" else 1)
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{name} before block {k + 1}")


def test_moving_pinned_keys_leaves_every_value_as_it_was_committed():
    cache, fresh = empty_cache(SINKS, sampler(), GRID, 1), random_fresh(SINKS, PREFIX.block(0), seed=0)
    cache = commit_one(cache, fresh, shift_rotations(SINKS, shift_phases(SINKS, 2)))
    for name in NAMES:
        own = np.roll(getattr(fresh, name).v, -SINKS.sinks if name in ("audio_self", "a2v") else 0, axis=2)
        np.testing.assert_array_equal(getattr(cache.past, name).v[:, :, : own.shape[2]], own, err_msg=name)


def random_fresh(config, block, seed):
    """Random keys and values of one block, as its clean pass would give them; sinks lead the audio of block 0."""
    rng, sinks = np.random.default_rng(seed), 0 if block.video_start else config.sinks
    audio, video = sinks + block.audio_frames, block.video_frames * TOKENS

    def kv(tokens, stream):
        shape = (config.layers, 1, tokens, stream.heads, stream.head_size)
        return KV(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in "kv"))

    return Sites(
        video_self=kv(video, config.video),
        audio_self=kv(audio, config.audio),
        a2v=kv(audio, config.audio),
        v2a=kv(video, config.audio),
    )


def big_program(window):
    """A stream whose cache is larger than anything else in its programs."""
    config = dataclasses.replace(TINY, layers=8)
    s = SamplerConfig(sigmas=(1.0, 0.0), horizon_seconds=40, window=window)
    params, grid = random_params(config), GRID
    cache = empty_cache(config, s, grid, BATCH)
    text, latents = random_text(config, params), random_latents(config, 3, 25)
    placed = make_positions(config, PREFIX.block(1), grid), shift_phases(config, 0)

    def denoise(params, cache, latents, positions, text):
        view = streaming(config, rotaries(config, positions), one_sigma(jnp.full(BATCH, 0.5)), past_bias(cache))
        return predict(params, config, latents, view, text, past=cache.past)

    def step(params, cache, latents, placed, text):
        return denoise(params, cache, latents, placed[0], text).velocity

    def clean(params, cache, latents, placed, text):
        out = denoise(params, cache, latents, placed[0], text)
        return commit(cache, out.fresh, shift_rotations(config, placed[1]))

    return (step, clean), (params, cache, latents, placed, text)


def large_results(text, elements):
    """Instructions of a compiled program that make at least so many elements, other than in place."""
    found = []
    for name, shape, kind in re.findall(r"%?([\w.-]+) = \w+\[([\d,]+)\]\S* ([\w-]+)\(", text):
        in_place = kind in ("parameter", "get-tuple-element", "bitcast") or "dynamic-update-slice" in name.replace(
            "_", "-"
        )
        if not in_place and math.prod(int(d) for d in shape.split(",")) >= elements:
            found.append((name, shape))
    return found


def test_compiled_steps_make_no_copy_of_the_cache():
    (step, clean), args = big_program(window=30)
    cache = args[1]
    smallest = min(leaf.size for leaf in jax.tree.leaves(cache.past))
    read = jax.jit(step).lower(*args).compile(AS_USERS_DO)
    assert large_results(read.as_text(), smallest) == []
    write = jax.jit(clean, donate_argnums=1).lower(*args).compile(AS_USERS_DO)
    assert large_results(write.as_text(), smallest) == []
    aliased = write.memory_analysis().alias_size_in_bytes
    assert aliased >= sum(leaf.nbytes for leaf in jax.tree.leaves(cache.past))
