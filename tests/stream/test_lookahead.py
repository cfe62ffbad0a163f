"""A stream whose decoder is not causal: its picture is delayed, and nothing else changes."""

import dataclasses
import itertools
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stream import GRID, PROMPT, student

from omniforcing_jax.io import machine
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.conditioning.tracks import ConditioningTracks, LatentTrack
from omniforcing_jax.stream.decode import decode_clip
from omniforcing_jax.stream.plan import LOOKAHEAD, plan_stream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream

SECONDS = 5


@cache
def looking():
    """The tiny student with a decoder that sees both sides."""
    both_ways, codecs, config = {"causal_decoder": False}, student().codecs, student().config
    video = dataclasses.replace(config.video_vae, **both_ways)
    return dataclasses.replace(
        student(),
        codecs=dataclasses.replace(codecs, video_config=video),
        config=dataclasses.replace(config, video_vae=video),
    )


EXACT = looking().config.video_vae.decoder_reach


@cache
def recorded():
    """A whole stream that looks far enough ahead: chunks, latents, and the programs ready at each chunk."""
    latents, chunks, ready, counter = [], [], [], machine.CompileCounter.start()
    trace = lambda step, block, outputs: latents.append(outputs) if step == "denoise" else None  # noqa: E731
    for chunk in open_stream(looking(), PROMPT, SECONDS, seed=3, lookahead=EXACT, trace=trace):
        chunks.append(chunk)
        ready.append(counter.ready)
    counter.stop()
    return chunks, latents, ready


def test_with_the_decoder_s_reach_the_chunks_add_up_to_the_clip_decoded_at_once():
    chunks, latents, _ = recorded()
    video, audio = (jnp.concatenate(pieces, axis=1) for pieces in zip(*latents, strict=True))
    whole = np.asarray(decode_clip(looking().codecs, video, audio, grid=GRID, dtype=jnp.dtype(jnp.float32))[0])[0]
    difference = np.abs(join_chunks(chunks)[0].astype(int) - whole)
    assert difference.max() <= 1  # a value on the edge between two bytes
    assert difference.mean() < 1e-3


def test_the_picture_lags_by_the_look_ahead_and_the_last_chunk_has_the_rest():
    chunks = recorded()[0]
    assert [len(chunk.video) for chunk in chunks] == [0, 0, 17, 24, 24, 24, 32]
    for one, other in itertools.pairwise(chunks):
        assert one.video_start_s + len(one.video) / 24 == pytest.approx(other.video_start_s)
    assert sum(len(chunk.audio) for chunk in chunks) == 120_240


def test_nothing_is_compiled_after_the_second_block():
    ready = recorded()[2]
    assert ready[1] == ready[-1]


@pytest.mark.parametrize("blocks", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_resumed_stream_goes_on_with_the_latents_that_it_holds(blocks, tmp_path):
    stream = open_stream(looking(), PROMPT, SECONDS, seed=3, lookahead=EXACT)
    before = [next(stream) for _ in range(blocks)]
    save(stream, tmp_path)
    for one, other in zip([*before, *resume(tmp_path, looking())], recorded()[0], strict=True):
        np.testing.assert_array_equal(one.video, other.video)
        assert one.video_start_s == other.video_start_s


@pytest.mark.long
def test_a_past_that_is_dropped_takes_its_late_frames_with_it():
    latents, whole = recorded()[1], recorded()[0]
    video, audio = (LatentTrack(iter([pair[i] for pair in latents[:3]]), 3) for i in range(2))
    like = open_stream(looking(), PROMPT, SECONDS, seed=3, lookahead=EXACT)
    tracks = ConditioningTracks(video, audio, dropped=3)
    kept = list(ChunkStream(looking(), like.plan, like.state, tracks=tracks))
    np.testing.assert_array_equal(join_chunks(kept)[0], join_chunks(whole)[0][49:])
    np.testing.assert_array_equal(join_chunks(kept)[1], join_chunks(whole)[1][49 * 1000 :])
    assert kept[0].video_start_s == kept[0].audio_start_s == 49 / 24


def test_a_stream_chooses_its_look_ahead_by_its_decoder():
    asked = StreamRequest(prompt=PROMPT, seconds=SECONDS)
    assert plan_stream(looking(), asked).lookahead == LOOKAHEAD
    assert plan_stream(student(), asked).lookahead == 0
    with pytest.raises(ValueError, match="lookahead=2: must be 0, because the picture's decoder is causal"):
        plan_stream(student(), dataclasses.replace(asked, lookahead=2))
    with pytest.raises(ValueError, match="lookahead=-1: must be between 0 and 300"):
        dataclasses.replace(asked, lookahead=-1)
