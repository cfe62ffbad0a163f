"""The stream of chunks: order of work, laziness, sameness, and what its chunks add up to."""

import dataclasses
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stream import GRID, PROMPT, student

from omniforcing_jax.io import machine
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.decode import decode_clip
from omniforcing_jax.stream.start import open_stream

SECONDS = 5  # six blocks: the ring of two slots wraps
DELAY = student().codecs.vocoder_config.delay


@cache
def recorded():
    """A whole stream: its chunks, every event, the latents, and how many programs were ready at each chunk."""
    events, latents, ready = [], [], []

    def trace(step, block, outputs):
        events.append((step, block))
        if step == "denoise":
            latents.append(outputs)

    counter, chunks = machine.CompileCounter.start(), []
    for chunk in open_stream(student(), PROMPT, SECONDS, seed=3, trace=trace):
        chunks.append(chunk)
        ready.append(counter.ready)
    counter.stop()
    return chunks, events, latents, ready


def same(one, other) -> bool:
    return all(
        np.array_equal(a.video, b.video) and np.array_equal(a.audio, b.audio)
        for a, b in itertools.zip_longest(one, other)
    )


def test_every_block_is_given_to_its_decoders_before_its_commit():
    events = recorded()[1]
    for k in range(SECONDS):
        place = {step: events.index((step, k)) for step in ("denoise", "decode video", "decode audio", "commit")}
        assert list(place) == sorted(place, key=lambda step: place[step])
        assert place["commit"] < events.index(("denoise", k + 1))


def test_chunks_add_up_to_the_clip_decoded_at_once():
    chunks, _, latents, _ = recorded()
    video, audio = (jnp.concatenate(pieces, axis=1) for pieces in zip(*latents, strict=True))
    whole_video, whole_audio = decode_clip(student().codecs, video, audio, grid=GRID, dtype=jnp.dtype(jnp.float32))
    streamed_video, streamed_audio = join_chunks(chunks)
    difference = np.abs(streamed_video.astype(int) - np.asarray(whole_video)[0])
    assert difference.max() <= 1  # a value on the edge between two bytes
    assert difference.mean() < 1e-3
    np.testing.assert_allclose(streamed_audio, whole_audio[0], atol=1e-4)


def test_chunks_stand_end_to_end_in_time():
    for one, other in itertools.pairwise(recorded()[0]):
        assert one.video_start_s + len(one.video) / 24 == pytest.approx(other.video_start_s)
        assert one.audio_start_s + len(one.audio) / one.sample_rate == pytest.approx(other.audio_start_s)


def test_sound_lags_by_what_the_vocoder_looks_ahead_and_the_last_chunk_is_its_tail():
    chunks = recorded()[0]
    assert [len(chunk.video) for chunk in chunks] == [1] + [24] * SECONDS + [0]
    assert len(chunks[0].audio) == 0
    assert [len(chunk.audio) for chunk in chunks[2:]] == [24_000] * (SECONDS - 1) + [DELAY]
    assert sum(len(chunk.audio) for chunk in chunks) == (1 + 100 * SECONDS) * 240


def test_nothing_is_compiled_after_the_second_block():
    ready = recorded()[3]
    assert ready[1:] == [ready[1]] * (SECONDS + 1)


def test_two_chunks_taken_are_two_blocks_made():
    made = []
    stream = open_stream(student(), PROMPT, trace=lambda step, block, outputs: made.append((step, block)))
    list(itertools.islice(stream, 2))
    assert [block for step, block in made if step == "denoise"] == [0, 1]


def test_a_stream_cut_saved_and_resumed_is_the_same_stream():
    stream = open_stream(student(), PROMPT, SECONDS, seed=3)
    before = list(itertools.islice(stream, 3))
    stored = jax.tree.map(lambda x: x if _is_key(x) or isinstance(x, int) else np.asarray(x), stream.state)
    restored = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, stored)
    resumed = ChunkStream(student(), stream.plan, restored)
    assert same(before + list(resumed), recorded()[0])


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_fork_and_its_origin_go_on_alike_and_apart(blocks):
    stream = open_stream(student(), PROMPT, SECONDS, seed=3)
    before = list(itertools.islice(stream, blocks))
    in_turn = zip(stream.fork(), stream, strict=True)  # neither uses up what the other has
    for future in zip(*in_turn, strict=True):
        assert same(before + list(future), recorded()[0])


def test_both_futures_of_a_fork_are_those_of_two_separate_runs():
    stream = open_stream(student(), PROMPT, SECONDS, seed=3)
    before = list(itertools.islice(stream, 2))
    fork = reseeded(stream.fork())
    separate = open_stream(student(), PROMPT, SECONDS, seed=3)
    list(itertools.islice(separate, 2))
    other = list(fork)
    assert same(other, list(reseeded(separate)))
    assert same(before + list(stream), recorded()[0])
    assert not same(before + other, recorded()[0])


def reseeded(stream):
    """Give the blocks to come other noise."""
    stream.state = dataclasses.replace(stream.state, keys=jax.random.split(jax.random.key(4), 1))
    return stream


def test_a_shorter_stream_is_the_beginning_of_a_longer_one():
    assert same(list(open_stream(student(), PROMPT, 2, seed=3))[:3], recorded()[0][:3])


@pytest.mark.parametrize(("prompt", "seed"), [(PROMPT, 4), ("a green ball", 3)])
def test_another_seed_or_prompt_is_another_stream(prompt, seed):
    assert not same([next(open_stream(student(), prompt, SECONDS, seed=seed))], recorded()[0][:1])


def test_memory_does_not_grow_with_the_stream():
    stream = open_stream(student(), PROMPT)
    in_use = [machine.device_bytes() for chunk in itertools.islice(stream, 8)]
    assert in_use[2:] == [in_use[2]] * 6


def test_closing_early_hands_out_the_tail_of_what_was_made():
    stream = open_stream(student(), PROMPT, seed=3)
    chunks = list(itertools.islice(stream, 2))
    tail = stream.close()
    assert tail is not None
    assert len(join_chunks([*chunks, tail])[1]) == 101 * 240
    assert stream.close() is None
    assert list(stream) == []


def test_closing_a_stream_that_never_began_hands_out_nothing():
    assert open_stream(student(), PROMPT).close() is None


def test_fewer_steps_keep_trained_sigmas_and_a_shorter_window_a_smaller_ring():
    stream = open_stream(student(), PROMPT, steps=1, window=1)
    assert stream.static.sampler.sigmas == (1.0, 0.0)
    assert stream.static.sampler.past_blocks == 0


def _is_key(x) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
