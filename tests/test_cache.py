import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.model.cache import Slots, commit, empty_cache, keep, past_masks, seen_in_ring
from omniforcing_jax.model.positions import make_positions, rotaries, shift_phases, shift_rotations
from omniforcing_jax.model.transformer import list_layers, predict
from omniforcing_jax.model.view import one_sigma, streaming
from omniforcing_jax.nn.attention import KV, Sites, put
from tests.properties.clips import SITES, listed_text
from tests.tiny import AS_USERS_DO, BATCH, GRID, SINKS, TINY, TOKENS, random_latents, random_params, random_text


def sampler(**changes):
    return SamplerConfig(sigmas=(1.0, 0.0), horizon_seconds=5, **changes)


def marked(config, cache, k):
    """Keys and values of block k, with k as every value; those of sinks are -1."""
    block = PREFIX.block(k)
    tokens = {"video": block.video_frames * TOKENS, "audio": block.audio_frames}
    sinks = config.sinks if k == 0 else 0

    def kv(audio, past):
        old = (past.ring or past.pinned).k
        marks = np.full(tokens["audio" if audio else "video"] + (sinks if audio else 0), k, np.float32)
        marks[: sinks if audio else 0] = -1
        x = jnp.broadcast_to(marks[None, None, :, None, None], (*old.shape[:2], len(marks), *old.shape[3:]))
        return KV(x + 10, x)

    return jax.tree.map(kv, Sites.of_keys(False, True), cache.past)


commit_one = jax.jit(commit)


def after(config, blocks, **changes):
    cache = empty_cache(config, sampler(**changes), GRID, 1)
    for k in range(blocks):
        cache = commit_one(cache, marked(config, cache, k))
    return cache


STILL = shift_rotations(SINKS, shift_phases(SINKS, 0))


def seen(cache, name):
    """Blocks that the next block may read at a site, pinned ones first."""
    past, mask, found = getattr(cache.past, name), getattr(past_masks(cache, STILL), name), []
    for kv, bias in ((past.pinned, mask.pinned), (past.ring, mask.ring)):
        if kv is not None:
            marks = np.asarray(kv.v[0, 0, :, 0, 0])
            found.append(marks if bias is None else marks[np.asarray(bias).reshape(-1) == 0])
    return np.concatenate(found)


def expected(config, blocks, window, pin, audio):
    kept = [k for k in range(blocks) if blocks - k < window or (k == 0 and pin)]
    sizes = [PREFIX.block(k).audio_frames if audio else PREFIX.block(k).video_frames * TOKENS for k in kept]
    marks = np.repeat(kept, sizes).tolist()
    return sorted(marks + [-1] * (config.sinks if audio and blocks else 0))


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_next_block_may_read_just_its_window_and_what_is_pinned(window, pin):
    cache = empty_cache(SINKS, sampler(window=window, pinned=int(pin)), GRID, 1)
    for blocks in range(1, 9):  # block 0 reads no cache
        cache = commit_one(cache, marked(SINKS, cache, blocks - 1))
        for name in SITES:
            audio = name in ("audio_self", "a2v")
            assert sorted(seen(cache, name).tolist()) == expected(SINKS, blocks, window, pin, audio)


def division(**changes):
    return Slots(**{"first": 6, "sinks": 2, "step": 18, "pinned_blocks": 1, "past": 3, "in_place": False, **changes})


def seen_range(slots, k):
    """Start and stop of the ring's slots that block k sees, which are one range."""
    index = np.flatnonzero(seen_in_ring(slots, jnp.int32(k)))
    assert len(index) == 0 or index.tolist() == list(range(index[0], index[-1] + 1))
    return (int(index[0]), int(index[-1]) + 1) if len(index) else (0, 0)


def test_slots_that_are_seen_come_first_while_block_0_is_pinned():
    assert [seen_range(division(), k) for k in range(1, 7)] == [(0, 0), (0, 18), (0, 36), (0, 54), (0, 54), (0, 54)]


def test_a_block_in_the_ring_sees_itself_beside_its_past():
    slots = division(in_place=True)
    assert [seen_range(slots, k) for k in range(1, 7)] == [(0, 18), (0, 36), (0, 54), (0, 72), (0, 72), (0, 72)]
    assert [int(slots.place_in_ring(k)) for k in range(1, 7)] == [0, 18, 36, 54, 0, 18]


def test_an_unpinned_block_0_drops_off_the_front():
    slots = division(past=2, pinned_blocks=0)
    assert [seen_range(slots, k)[0] for k in range(1, 6)] == [0, 0, 6, 6, 6]


def test_a_block_lies_in_its_place_in_the_ring():
    cache = after(TINY, 6, window=4)  # three past blocks
    marks = np.asarray(cache.past.video_self.ring.v[0, 0, :, 0, 0]).reshape(3, -1)
    assert [set(row) for row in marks] == [{4.0}, {5.0}, {3.0}]


def test_a_cache_without_ring_keeps_block_0_only():
    cache = after(TINY, 4, window=1)
    assert cache.past.video_self.ring is None
    assert cache.past.video_self.pinned.k.shape[2] == TOKENS
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


@pytest.mark.parametrize("has_list", [False, True])
@pytest.mark.parametrize("pin", [True, False])
def test_what_is_pinned_stays_as_it_was_committed_while_the_ring_goes_round(pin, has_list):
    cache = empty_cache(SINKS, sampler(window=2, pinned=int(pin)), GRID, 1, has_list=has_list)
    first = random_fresh(SINKS, PREFIX.block(0), seed=0)
    cache = commit_one(cache, first if not has_list else by_layer(first))
    expected = jax.device_get(pinned_of(cache))
    for k in (1, 2, 3, 4):
        fresh = random_fresh(SINKS, PREFIX.block(k), seed=k)
        cache = commit_one(cache, in_rings(cache, fresh) if has_list else fresh)
    for name in SITES:
        audio, layers = name in ("audio_self", "a2v"), zip(pinned_of(cache), expected, strict=True)
        for number, (found, wanted) in enumerate(layers):
            jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(wanted, name))
            own = jax.tree.map(lambda x, n=number: x if not has_list else x[n], getattr(first, name))
            count = (SINKS.sinks if audio else 0) + (own.k.shape[-3] - (SINKS.sinks if audio else 0)) * pin
            kept = getattr(found, name)
            assert kept is None or np.array_equal(kept.v, own.v[..., :count, :, :])
            assert (kept is None) is (count == 0)


def pinned_of(cache):
    """Pinned keys and values of all layers, stacked or not."""
    layers = cache.past if isinstance(cache.past, tuple) else (cache.past,)
    return [Sites(**{name: getattr(layer, name).pinned for name in SITES}) for layer in layers]


def by_layer(fresh):
    return tuple(jax.tree.map(lambda x, n=n: x[n], fresh) for n in range(len(fresh.video_self.k)))


def in_rings(cache, fresh):
    """Rings with a block in its place, as a forward returns them."""

    def ring(slots, past, own):
        return put(past.ring, own, slots.place_in_ring(int(cache.blocks_done)))

    layers = zip(cache.past, by_layer(fresh), strict=True)
    return tuple(jax.tree.map(ring, cache.slots, past, own) for past, own in layers)


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


def big_program(window, has_list):
    """A stream whose cache is larger than anything else in its programs."""
    config = dataclasses.replace(TINY, layers=8)
    s = SamplerConfig(sigmas=(1.0, 0.0), horizon_seconds=40, window=window)
    params = random_params(config)
    cache = empty_cache(config, s, GRID, BATCH, has_list=has_list)
    text, latents = random_text(config, params), random_latents(config, 3, 25)
    if has_list:
        params, text = list_layers(params), listed_text(text)
    placed = make_positions(config, PREFIX.block(1), GRID), shift_phases(config, 0)

    def predict_block(params, cache, latents, placed, text):
        masks = past_masks(cache, shift_rotations(config, placed[1]))
        view = streaming(config, rotaries(config, placed[0]), one_sigma(jnp.full(BATCH, 0.5)), masks)
        return predict(params, config, latents, view, text, past=cache.past)

    def step(params, cache, *inputs):
        made = predict_block(params, cache, *inputs)
        return made.velocity, keep(cache, made.fresh)

    def clean(params, cache, *inputs):
        return commit(cache, predict_block(params, cache, *inputs).fresh)

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


def compile_donating(program, args):
    return jax.jit(program, donate_argnums=1).lower(*args).compile(AS_USERS_DO)


def test_compiled_steps_make_no_copy_of_the_cache():
    programs, args = big_program(30, has_list=False)
    for compiled in (compile_donating(program, args) for program in programs):
        assert large_results(compiled.as_text(), min(getattr(args[1].past, name).ring.k.size for name in SITES)) == []
        aliased = compiled.memory_analysis().alias_size_in_bytes
        assert aliased >= sum(leaf.nbytes for leaf in jax.tree.leaves(args[1].past))


def test_compiled_steps_of_a_list_of_layers_write_every_ring_in_place():
    """A ring is one layer's. CPU transposes its keys for a matmul; nothing else may make an array like it."""
    programs, args = big_program(30, has_list=True)
    rings = {",".join(map(str, getattr(args[1].past[0], name).ring.k.shape)) for name in SITES}
    for compiled in (compile_donating(program, args) for program in programs):
        made = re.findall(r"= \w+\[([\d,]+)\][^=]* (?:copy|concatenate|pad|select|dynamic-slice)\(", compiled.as_text())
        assert made
        assert not rings & set(made)
        aliased = compiled.memory_analysis().alias_size_in_bytes
        assert aliased >= sum(leaf.nbytes for leaf in jax.tree.leaves(args[1].past))
