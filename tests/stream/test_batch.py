"""Several prompts on one clock: rows that have no influence on each other."""

import itertools
from functools import cache

import jax
import numpy as np
import pytest
from tiny_stream import PROMPT, student

from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream

PROMPTS = (PROMPT, "a green ball")
SECONDS = 4  # five blocks: the ring of two slots wraps


def latents_of(prompt, seed, blocks=SECONDS + 1):
    """The latents of all blocks, [B, T, C] and [B, A, C], and the chunks."""
    latents = []

    def trace(step, block, outputs):
        if step == "denoise":
            latents.append(outputs)

    stream = open_stream(student(), prompt, SECONDS, seed, trace=trace)
    chunks = list(itertools.islice(stream, blocks)) + list(stream)
    return [np.concatenate(pieces, axis=1) for pieces in zip(*latents, strict=True)], chunks


@cache
def batch():
    return latents_of(PROMPTS, 3)


@pytest.mark.long
@pytest.mark.parametrize("row", [0, 1])
def test_a_row_is_the_stream_of_its_prompt_and_seed(row):
    latents, chunks = batch()
    alone, own = latents_of(PROMPTS[row], 3 + row)
    for one, other in zip(latents, alone, strict=True):
        np.testing.assert_allclose(one[row], other[0], atol=1e-5)
    assert [len(rows) for rows in chunks] == [2] * (SECONDS + 2)
    (video, audio), (own_video, own_audio) = join_chunks([rows[row] for rows in chunks]), join_chunks(own)
    assert np.abs(video.astype(int) - own_video).max() <= 1
    np.testing.assert_allclose(audio, own_audio, atol=1e-4)
    for chunk, rows in zip(own, chunks, strict=True):
        assert (chunk.index, chunk.video_start_s, chunk.audio_start_s) == (
            rows[row].index,
            rows[row].video_start_s,
            rows[row].audio_start_s,
        )


@pytest.mark.long
def test_a_row_does_not_depend_on_its_neighbour():
    other, _ = latents_of((PROMPTS[0], "three balls"), (3, 77))
    for one, two in zip(batch()[0], other, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        assert not np.allclose(one[1], two[1])


@pytest.mark.long
def test_a_batch_is_resumed_as_a_batch(tmp_path):
    stream = open_stream(student(), PROMPTS, SECONDS, 3)
    begun = list(itertools.islice(stream, 2))
    save(stream, tmp_path)
    resumed = resume(tmp_path, student())
    assert isinstance(resumed, BatchStream)
    assert resumed.state.prompt_words == PROMPTS
    for rows, expected in zip(begun + list(resumed), batch()[1], strict=True):
        for one, other in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(one.video, other.video)
            np.testing.assert_array_equal(one.audio, other.audio)


def test_a_batch_of_one_hands_out_tuples_of_one():
    stream = open_stream(student(), [PROMPT])
    assert isinstance(stream, BatchStream)
    assert len(next(stream)) == stream.rows == 1


def test_closing_a_batch_early_hands_out_every_tail():
    stream = open_stream(student(), PROMPTS)
    assert stream.close() is None
    stream = open_stream(student(), PROMPTS)
    next(stream)
    tails = stream.close()
    assert tails is not None
    assert [len(tail.video) for tail in tails] == [0, 0]
    assert all(len(tail.audio) for tail in tails)
    assert list(stream) == []


def test_row_i_of_a_batch_with_one_seed_has_that_seed_plus_i():
    keys = [jax.random.key_data(open_stream(student(), PROMPTS, seed=seed).state.keys) for seed in (3, [3, 4])]
    np.testing.assert_array_equal(*keys)


@pytest.mark.parametrize(
    ("prompt", "seed", "named"),
    [
        ((), 0, "prompt=.*at least one"),
        (PROMPTS, (1,), "seed=.*one for each of 2 prompts"),
        (PROMPTS, (1, 2, 3), "seed=.*one for each of 2 prompts"),
        ((PROMPT, "a rad ball"), 0, "'rad'"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(prompt, seed, named):
    with pytest.raises(ValueError, match=named):
        open_stream(student(), prompt, seed=seed)
