"""Changes of prompt: the recomputed cache, the run that it equals, and no compilation in mid-stream."""

import dataclasses
import gc
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stream import PROMPT, listed, student

from omniforcing_jax import rollout as r
from omniforcing_jax.io import machine
from omniforcing_jax.model.cache import Cache, Slots
from omniforcing_jax.nn.attention import put
from omniforcing_jax.stream import chunk_stream
from omniforcing_jax.stream.conditioning.tracks import ConditioningTracks, LatentTrack
from omniforcing_jax.stream.prompt_change import recache, transition
from omniforcing_jax.stream.prompt_change.history import check_recompute, exact_depth, window_blocks
from omniforcing_jax.stream.prompt_change.recache import blocks_in_ring, blocks_to_recache
from omniforcing_jax.stream.prompt_schedule import ScheduledPrompt, follow_schedule, plan_prompt_schedule
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.text.contexts import TextContexts

NEW = "a green ball"
STREAM = open_stream(listed(), PROMPT)
STATIC, PARAMS = STREAM.static, listed().transformer
SAMPLER, RING, EXACT = STATIC.sampler, STATIC.sampler.past_blocks, exact_depth(STREAM.static)


def copied(stream):
    """A fork that has the latents of its origin."""
    fork = stream.fork()
    fork.latents = dict(stream.latents)
    return fork


@cache
def streamed(blocks):
    """A stream under the first prompt with an exact history; do not advance it, fork it."""
    latents = {}

    def trace(step, block, outputs):
        if step == "denoise":
            latents[block] = outputs

    stream = open_stream(listed(), PROMPT, seed=5, history=EXACT, trace=trace)
    for _ in itertools.islice(stream, blocks):
        pass
    stream.trace, stream.latents = lambda step, block, outputs: None, latents
    return stream


def committed(stream, prompt, blocks):
    """The cache of a run whose commits were all made under one prompt, from the latents of a stream."""
    cache = r.make_cache(STATIC, 1, True)
    for k in range(blocks):
        positions, keys = r.block_positions(STATIC, k), stream.state.keys
        cache = r.commit_block(PARAMS, cache, prompt, keys, stream.latents[k], positions, static=STATIC)
    return cache


def changed(blocks, prompt, recompute):
    """A fork after its border, without the next block; also the blocks that were recomputed."""
    fork, events = copied(streamed(blocks)), []
    fork.set_prompt(prompt, recompute)
    fork.trace = lambda step, block, outputs: events.append(block) if step == "recompute" else None
    fork._change_text()
    return fork, events


def readable(cache):
    """The past of a cache without what lies in the next block's own place, which is written before it is read."""

    def clear(slots, past):
        own = jax.tree.map(lambda x: jnp.zeros((len(x), slots.step, *x.shape[2:])), past.ring)
        return dataclasses.replace(past, ring=put(past.ring, own, slots.place_in_ring(cache.blocks_done)))

    return [cache.blocks_done, *(jax.tree.map(clear, cache.slots, layer) for layer in cache.past)]


def assert_close(one, other, atol):
    one, other = (readable(x) if isinstance(x, Cache) else x for x in (one, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def farthest(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


# Three blocks: within the horizon. Five: the ring has wrapped. Eleven: beyond the horizon, early blocks are forgotten.
@pytest.mark.parametrize("blocks", [1, pytest.param(3, marks=pytest.mark.long), 5, 11])
def test_a_full_recompute_is_the_cache_of_a_run_under_the_new_prompt(blocks):
    fork, shown = changed(blocks, NEW, 1 + EXACT)
    assert len(shown) == min(blocks, 1 + EXACT)
    expected = committed(fork, fork.state.prompt, blocks)
    assert_close(fork.state.cache, expected, 2e-5)
    assert farthest(streamed(blocks).state.cache.past, expected.past) > 1e-2  # the prompt does matter


@pytest.mark.long
def test_stacked_layers_are_recomputed_too():
    """Their ring has no place for the block at hand."""
    stacked, listing = (open_stream(pipeline, PROMPT, seed=5, history=EXACT) for pipeline in (student(), listed()))
    for stream in (stacked, listing):
        for _ in range(5):
            next(stream)
        stream.set_prompt(NEW)
    one, other = next(stacked), next(listing)
    np.testing.assert_allclose(one.video.astype(float), other.video, atol=1)
    np.testing.assert_allclose(one.audio, other.audio, atol=2e-4)


@pytest.mark.parametrize("blocks", [3, 5, 11])
def test_recomputing_under_the_same_prompt_changes_nothing(blocks):
    fork, _ = changed(blocks, PROMPT, 1 + EXACT)
    assert_close(fork.state.cache, streamed(blocks).state.cache, 1e-6)


@pytest.mark.parametrize("count", [1, RING])
def test_the_window_is_recomputed_on_what_is_left_of_its_past_while_nothing_was_evicted(count):
    fork, shown = changed(3, PROMPT, count)
    assert shown == list(range(3 - count, 3))
    assert_close(fork.state.cache, streamed(3).state.cache, 1e-6)


def test_beyond_the_ring_the_window_alone_is_recomputed_by_default_as_a_clip_of_its_own():
    fork, shown = changed(11, NEW, None)
    assert shown == [0, 9, 10]  # as the first three blocks of a clip, whose ring has gone round
    commit_one = jax.jit(lambda *args: r.clean_pass(PARAMS, *args, STATIC))
    cache, prompt, keys = r.make_cache(STATIC, 1, True), fork.state.prompt, fork.state.keys
    for k in (0, 9, 10):
        positions = r.block_positions(STATIC, k)
        noise = r.draw_context_noise(keys, jnp.int32(k), STATIC, positions)
        cache = commit_one(cache, prompt, fork.latents[k], noise, positions)

    def turn(slots, past):
        turns = slots.place_in_ring(9) - slots.place_in_ring(1)
        return dataclasses.replace(past, ring=jax.tree.map(lambda x: jnp.roll(x, turns, axis=1), past.ring))

    past = tuple(jax.tree.map(turn, cache.slots, layer) for layer in cache.past)
    assert_close(fork.state.cache, dataclasses.replace(cache, past=past, blocks_done=jnp.int32(11)), 2e-5)


def with_given_past(prompt, blocks, **request):
    """A stream after blocks that were all given to it: no prompt has an influence on their latents."""
    latents = list(streamed(blocks).latents.values())
    video, audio = (LatentTrack(iter([block[i] for block in latents]), blocks) for i in range(2))
    like = open_stream(listed(), prompt, seed=5, **request)
    stream = chunk_stream.ChunkStream(listed(), like.plan, like.state, tracks=ConditioningTracks(video, audio))
    for _ in itertools.islice(stream, blocks):
        pass
    return stream


def test_with_an_exact_history_a_changed_prompt_equals_the_run_that_had_it_from_the_beginning():
    expected = with_given_past(NEW, 11)
    exact, by_default = (with_given_past(PROMPT, 11, history=history) for history in ("exact", None))
    assert exact.state.history.depth == EXACT
    chunks = []
    for stream in (expected, exact, by_default):
        if stream is not expected:
            stream.set_prompt(NEW)
        chunks.append(next(stream))
    assert_close(exact.state.cache, expected.state.cache, 2e-5)
    assert farthest(by_default.state.cache.past, expected.state.cache.past) > 1e-3  # which forgot its early blocks
    assert np.abs(chunks[1].video.astype(int) - chunks[0].video).max() <= 1
    np.testing.assert_allclose(chunks[1].audio, chunks[0].audio, atol=1e-4)


def test_recomputing_nothing_changes_the_text_only():
    fork, shown = changed(5, NEW, 0)
    assert shown == []
    for a, b in zip(jax.tree.leaves(fork.state.cache), jax.tree.leaves(streamed(5).state.cache), strict=True):
        np.testing.assert_array_equal(a, b)
    expected = open_stream(listed(), NEW).state.prompt
    assert_close(fork.state.prompt, expected, 0)
    assert farthest(fork.state.prompt, streamed(5).state.prompt) > 1e-2


def test_nothing_is_compiled_after_the_first_change():
    stream = copied(streamed(5))
    stream.set_prompt(NEW, fade=1)
    for _ in itertools.islice(stream, 3):
        pass
    counter = machine.CompileCounter.start()
    stream.set_prompt(PROMPT, fade=2)
    for _ in itertools.islice(stream, 4):
        pass
    stream.set_prompt(NEW, recompute=1)
    next(stream)
    counter.stop()
    assert counter.ready == 0


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def compiled_by(stream, blocks):
    """Count the programs that the next blocks need and that are not compiled yet."""
    counter = machine.CompileCounter.start()
    for _ in range(blocks):
        next(stream)
    counter.stop()
    return counter.ready


# Sizes of no other test: nothing is compiled yet.
@pytest.mark.parametrize(("fade", "width"), [(0, 32), pytest.param(2, 160, marks=pytest.mark.long)])
def test_a_rehearsed_change_compiles_nothing_in_mid_stream_and_changes_nothing(fade, width):
    stream, plain = (open_stream(listed(), PROMPT, seed=6, height=32, width=width) for _ in range(2))
    stream.rehearse_change(fade=fade)
    assert_equal(stream.state, plain.state)
    chunks = follow_schedule(stream, [ScheduledPrompt(3, NEW)], fade=fade)
    for _, other in zip(range(3), plain, strict=False):
        chunk = next(chunks)
        np.testing.assert_array_equal(chunk.video, other.video)
        np.testing.assert_array_equal(chunk.audio, other.audio)
    assert_equal(stream.state, plain.state)
    assert compiled_by(chunks, 6) == 0


@pytest.mark.parametrize("is_rehearsed", [True, False])
def test_a_change_is_rehearsed_in_mid_stream_and_leaves_the_stream_as_it_is(is_rehearsed):
    plain = streamed(5)
    stream = copied(plain)
    body = recache._replay_later.__wrapped__

    @partial(jax.jit, static_argnames="static", donate_argnums=1)
    def not_yet_compiled(*args, static):
        return body(*args, static=static)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recache, "_replay_later", not_yet_compiled)
        if is_rehearsed:
            stream.rehearse_change()
        assert_equal(stream.state, plain.state)
        stream.set_prompt(NEW)
        assert (compiled_by(stream, 2) == 0) == is_rehearsed


@pytest.mark.parametrize("blocks", [0, 3])
def test_a_rehearsal_needs_no_second_cache(monkeypatch, blocks):
    stream, seen = copied(streamed(blocks)) if blocks else open_stream(listed(), PROMPT), []
    held, text = (sum(x.nbytes for x in jax.tree.leaves(x)) for x in (stream.state.cache, stream.state.prompt))

    def watched(*args, **kwargs):
        seen.append(machine.device_bytes())
        changed = transition.advance_transition(*args, **kwargs)
        seen.append(machine.device_bytes())
        return changed

    monkeypatch.setattr(chunk_stream, "advance_transition", watched)
    stream.rehearse_change()
    gc.collect()
    before = machine.device_bytes()
    stream.rehearse_change()
    assert seen[2] == before
    assert seen[3] - before < text + held / 4
    assert machine.device_bytes() == before


def test_a_new_prompt_is_seen_and_heard_from_the_next_block_on():
    kept, changed_stream = (copied(streamed(5)) for _ in range(2))
    changed_stream.set_prompt(NEW)
    one, other = next(kept), next(changed_stream)
    assert one.index == other.index == 5
    assert not np.array_equal(one.video, other.video)
    assert not np.array_equal(one.audio, other.audio)


def test_a_fade_goes_over_in_equal_parts():
    stream = copied(streamed(3))
    begin = stream.state.transition.now.video
    stream.set_prompt("a red ball and a green ball", recompute=0, fade=3)
    goal, parts = stream.state.transition.goal.video, []
    for _ in itertools.islice(stream, 5):
        parts.append(np.asarray(stream.state.transition.now.video))
    for part, share in zip(parts, (0.25, 0.5, 0.75, 1, 1), strict=True):
        np.testing.assert_allclose(part, begin + share * (goal - begin), atol=1e-6)
    np.testing.assert_array_equal(parts[3], goal)
    assert stream.state.transition.left == 0


def test_a_token_that_only_one_prompt_has_fades_in_from_or_out_to_zero():
    rng = np.random.default_rng(0)
    masks = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    videos, audios = ([rng.normal(size=(1, 4, width)).astype(np.float32) for _ in masks] for width in (6, 3))
    now, goal = (TextContexts(*map(jnp.asarray, parts)) for parts in zip(videos, audios, masks, strict=True))
    mixed = transition._mix(now, goal, 0.25)
    np.testing.assert_array_equal(mixed.mask, [[1, 1, 1, 0]])
    for found, (one, other) in ((mixed.video, videos), (mixed.audio, audios)):
        expected = 0.75 * one * masks[0][..., None] + 0.25 * other * masks[1][..., None]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_change_that_waits_is_part_of_the_state():
    stream = copied(streamed(3))
    stream.set_prompt(NEW, fade=1)
    fork = stream.fork()
    for one, other in zip(itertools.islice(stream, 3), itertools.islice(fork, 3), strict=True):
        np.testing.assert_array_equal(one.video, other.video)
        np.testing.assert_array_equal(one.audio, other.audio)


def test_a_prompt_set_before_the_first_block_is_the_first_prompt():
    stream = open_stream(listed(), PROMPT, seed=5)
    stream.set_prompt(NEW)
    np.testing.assert_array_equal(next(stream).video, next(open_stream(listed(), NEW, seed=5)).video)


@pytest.mark.parametrize(
    ("prompt", "more", "named"),
    [
        ("a gren ball", {}, "green"),
        (NEW, {"recompute": 2 + EXACT}, f"recompute={2 + EXACT}: must be between 0 and {1 + EXACT}"),
        (NEW, {"recompute": -1}, "recompute=-1"),
        (NEW, {"fade": -1}, "fade=-1"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_leaves_the_stream_as_it_is(prompt, more, named):
    stream = copied(streamed(3))
    with pytest.raises(ValueError, match=named):
        stream.set_prompt(prompt, **more)
    assert stream.state.transition.left == 0


def test_contexts_of_another_form_are_refused():
    stream = copied(streamed(3))
    longer = jax.tree.map(lambda x: np.concatenate([x, x], axis=1), stream.state.transition.now)
    with pytest.raises(ValueError, match="contexts: video"):
        stream.set_prompt("", contexts=longer)


def test_the_newest_blocks_are_replayed_first_and_block_0_completes_the_window():
    window = window_blocks(SAMPLER)
    assert check_recompute(SAMPLER, EXACT, None) == window == RING + 1 == 3
    listed = [blocks_to_recache(STATIC, 4, 9, count) for count in range(6)]
    assert listed == [[], [8], [7, 8], [0, 7, 8], [0, 6, 7, 8], [0, 5, 6, 7, 8]]
    assert blocks_to_recache(STATIC, 4, 0, 3) == []
    assert blocks_to_recache(STATIC, 4, 1, 3) == [0]
    assert blocks_to_recache(STATIC, 4, 2, 1) == [1]
    unmoved = STATIC._replace(sampler=dataclasses.replace(SAMPLER, window=1))
    assert [blocks_to_recache(unmoved, 0, 5, count) for count in (0, 1)] == [[], [0]]


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_a_slot_holds_what_was_replayed_last_or_else_what_was_there(ring):
    for done, first in itertools.combinations(range(8, 0, -1), 2):
        slots = {(k - 1) % ring: k for k in range(1, done)}
        for block in range(first, done):
            assert blocks_in_ring(division(ring), done, first, block).tolist() == [
                slots.get(i, -1) for i in range(ring)
            ]
            slots[(block - 1) % ring] = block


def division(ring):
    return Slots(first=6, sinks=0, step=18, pinned_blocks=1, past=ring, in_place=False)


def test_scheduled_prompts_wait_for_the_next_border(caplog):
    assert plan_prompt_schedule(SAMPLER, [(1, "a"), (2.5, "b"), (4, "c")], 5) == (
        ScheduledPrompt(2, "a"),
        ScheduledPrompt(4, "b"),
        ScheduledPrompt(5, "c"),
    )
    (line,) = caplog.messages
    assert "2.5 s" in line
    assert "3 s" in line


@pytest.mark.parametrize(
    ("times", "named"),
    [
        ([0], "prompt-at=0"),
        ([-1], "prompt-at=-1"),
        ([float("nan")], "prompt-at=nan"),
        ([5], "before the end of the stream at 5 s"),
        ([4.5], "before the end"),
        ([3, 2], "at least one block after the prompt at 3 s"),
        ([1.2, 1.8], "at least one block after the prompt at 2 s"),
    ],
)
def test_scheduled_prompts_that_cannot_be_are_refused_by_time(times, named):
    with pytest.raises(ValueError, match=named):
        plan_prompt_schedule(SAMPLER, [(time, "a") for time in times], 5)
