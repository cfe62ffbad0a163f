"""Conditioning by a past, a soundtrack or a picture: it is kept unchanged, and everything that is made follows it."""

import dataclasses
import itertools
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stream import GRID, PROMPT, STATIC, student

from omniforcing_jax.codecs.audio_vae import AudioVAE
from omniforcing_jax.codecs.mel import log_mel
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.io import machine
from omniforcing_jax.layout import PREFIX2
from omniforcing_jax.stream.chunk import join_chunks
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.conditioning.condition import Condition, plan_conditioning
from omniforcing_jax.stream.conditioning.tracks import (
    ConditioningTracks,
    LatentTrack,
    encode_picture,
    encode_sound,
    frame_counts,
)
from omniforcing_jax.stream.decode import decode_clip
from omniforcing_jax.stream.start import open_stream

SECONDS = 4
LAYOUT, CODECS = STATIC.sampler.layout, student().codecs
MEL = plan_conditioning(student().config, STATIC, SECONDS + 1, Condition(), Condition()).mel


def frames(count, seed=0):
    """Random pictures of the stream's size."""
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3), np.uint8)


def sound(seconds, seed=0):
    """Noise at 16 kHz."""
    return np.random.default_rng([seed, 1]).normal(0, 0.1, (int(seconds * 16_000), 2)).astype(np.float32)


def planned(layout, start=None, drive=None):
    """Plan a stream of 2 s in this layout."""
    config = dataclasses.replace(student().config.sampler, layout=layout)
    static = STATIC._replace(sampler=config)
    return plan_conditioning(student().config, static, 3, Condition(sound=start), Condition(sound=drive))


@cache
def recorded():
    """A stream without conditioning: its chunks and the latents of its blocks."""
    latents = []
    trace = lambda step, block, outputs: latents.append(outputs) if step == "denoise" else None  # noqa: E731
    return list(open_stream(student(), PROMPT, SECONDS, seed=3, trace=trace)), latents


def going_on(blocks, dropped=0):
    """A stream of the same request whose first blocks are those of the free one, as conditioning."""
    latents = recorded()[1]
    video, audio = (LatentTrack(iter([pair[i] for pair in latents[:blocks]]), blocks) for i in range(2))
    like = open_stream(student(), PROMPT, SECONDS, seed=3)
    return ChunkStream(student(), like.plan, like.state, tracks=ConditioningTracks(video, audio, dropped))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.video, b.video)
        np.testing.assert_array_equal(a.audio, b.audio)
        assert (a.index, a.video_start_s, a.audio_start_s) == (b.index, b.video_start_s, b.audio_start_s)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_stream_that_is_given_its_own_past_goes_on_as_itself(blocks):
    assert_same(list(going_on(blocks)), recorded()[0])


def test_a_past_that_is_dropped_leaves_no_seam():
    kept, whole = list(going_on(3, dropped=3)), recorded()[0]
    assert [chunk.index for chunk in kept] == [3, 4, 5]
    np.testing.assert_array_equal(join_chunks(kept)[0], join_chunks(whole)[0][49:])
    assert kept[0].audio_start_s == kept[0].video_start_s == 49 / 24
    np.testing.assert_array_equal(join_chunks(kept)[1], join_chunks(whole)[1][49 * 1000 :])
    assert_same(kept[1:], whole[4:])


def test_pictures_are_encoded_block_by_block_as_the_whole_clip_is():
    clip, sizes = frames(49), frame_counts(LAYOUT, 3)
    assert sizes == [1, 24, 24]
    batches = iter(np.split(clip, np.cumsum(sizes)[:-1]))
    tokens = np.concatenate(list(encode_picture(CODECS, batches, jnp.dtype(jnp.float32))), axis=1)
    pixels = jnp.asarray(clip[None], jnp.float32) / 127.5 - 1
    whole = VideoVAE(CODECS.video_config).apply(CODECS.video, pixels, method="encode")
    np.testing.assert_allclose(tokens, np.reshape(whole, tokens.shape), atol=2e-5)


@pytest.mark.parametrize("layout", [LAYOUT, PREFIX2])
def test_sound_is_encoded_block_by_block_as_the_whole_clip_is(layout):
    wave = sound(layout.sound_seconds(3))
    tokens = np.concatenate(list(encode_sound(CODECS, wave, layout, 3, MEL)), axis=1)
    mel = log_mel(jnp.asarray(wave[None]), MEL)
    whole = AudioVAE(CODECS.audio_config).apply(CODECS.audio, mel, method="encode")
    np.testing.assert_allclose(tokens, whole, atol=5e-5)


def driven(seed=3, **condition):
    return list(open_stream(student(), PROMPT, 2, seed, drive=Condition(**condition)))


def test_a_picture_is_made_to_a_soundtrack_which_is_kept_as_it_is():
    chunks, other_seed, other_sound = (driven(s, sound=sound(2, n)) for s, n in ((3, 0), (4, 0), (3, 1)))
    tokens = np.concatenate(list(encode_sound(CODECS, sound(2), LAYOUT, 3, MEL)), axis=1)
    blank = jnp.zeros((1, 7 * GRID[0] * GRID[1], 8))
    coded = decode_clip(CODECS, blank, jnp.asarray(tokens), grid=GRID, dtype=jnp.dtype(jnp.float32))[1][0]
    np.testing.assert_allclose(join_chunks(chunks)[1], coded, atol=1e-4)
    np.testing.assert_array_equal(join_chunks(chunks)[1], join_chunks(other_seed)[1])
    assert not np.array_equal(join_chunks(chunks)[0], join_chunks(other_seed)[0])
    assert not np.array_equal(join_chunks(chunks)[0], join_chunks(other_sound)[0])


def test_sound_is_made_to_a_picture_which_is_kept_as_it_is():
    chunks, other_seed, other_picture = (driven(s, picture=frames(49, n)) for s, n in ((3, 0), (4, 0), (3, 1)))
    np.testing.assert_array_equal(join_chunks(chunks)[0], join_chunks(other_seed)[0])
    assert not np.array_equal(join_chunks(chunks)[1], join_chunks(other_seed)[1])
    assert not np.array_equal(join_chunks(chunks)[1], join_chunks(other_picture)[1])


def test_a_driven_stream_compiles_nothing_after_its_second_block():
    stream = open_stream(student(), PROMPT, SECONDS, drive=Condition(sound=sound(SECONDS)))
    list(itertools.islice(stream, 2))
    counter = machine.CompileCounter.start()
    list(stream)
    counter.stop()
    assert counter.ready == 0


def test_a_driven_stream_forks():
    stream = open_stream(student(), PROMPT, 2, drive=Condition(sound=sound(2)))
    next(stream)
    assert_same(list(stream.fork()), list(stream))


def test_an_image_is_the_first_frame_and_sound_is_made_for_it():
    image = frames(1)
    given = []
    trace = lambda step, block, outputs: given.append((step, outputs)) if step == "denoise" else None  # noqa: E731
    stream = open_stream(student(), PROMPT, 2, start=Condition(picture=image), trace=trace)
    assert [chunk.index for chunk in stream] == [0, 1, 2, 3]
    (tokens,) = encode_picture(CODECS, iter([image]), jnp.dtype(jnp.float32))
    np.testing.assert_array_equal(given[0][1].video, tokens)
    assert len(given) == 3


def test_an_image_and_a_soundtrack_go_together():
    one, other = (
        list(open_stream(student(), PROMPT, 1, start=Condition(picture=frames(1, n)), drive=Condition(sound=sound(1))))
        for n in (0, 1)
    )
    np.testing.assert_array_equal(join_chunks(one)[1], join_chunks(other)[1])
    assert not np.array_equal(one[0].video, other[0].video)


@pytest.mark.parametrize(
    ("start", "drive", "named"),
    [
        ({"picture": frames(26)}, {}, "26 frames.*1 \\+ 24 j frames; the nearest numbers are 25 and 49"),
        ({"picture": frames(49)}, {}, "seconds=2: must be longer than the 2 s"),
        ({"picture": frames(25)[:, :32]}, {}, "96x32.*the stream's picture is 96x64"),
        ({"picture": frames(25), "sound": sound(1.5)}, {}, "1.50 s of sound.*must be 1 s, like the picture"),
        ({"sound": sound(1.5)}, {}, "must be 1 s, a whole number of blocks"),
        ({"sound": sound(1)[:, :1]}, {}, "float32 \\[samples, 2\\]"),
        ({}, {"sound": sound(1.9)}, "1.90 s.*shorter than the stream of 2 s"),
        ({}, {"picture": frames(48)}, "48 frames.*shorter than the stream, which has 49 frames"),
        ({}, {"picture": frames(49), "sound": sound(2)}, "nothing would be left to make"),
        ({"sound": sound(1)}, {"sound": sound(2)}, "the start has one already"),
        ({"picture": frames(25), "drop_past": True}, {}, "drop_past=True"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(start, drive, named):
    with pytest.raises(ValueError, match=named):
        open_stream(student(), PROMPT, 2, start=Condition(**start), drive=Condition(**drive))


def test_a_layout_with_one_audio_latent_more_takes_a_latent_more_of_sound():
    assert planned(PREFIX2, start=sound(1.04)).sound_blocks == 2
    assert planned(PREFIX2, drive=sound(2.04)).sound_blocks == 3
    with pytest.raises(ValueError, match=r"1.00 s of sound.*must be 0.04 s, a whole number of blocks"):
        planned(PREFIX2, start=sound(1))
    with pytest.raises(ValueError, match=r"2.00 s.*shorter than the stream of 2 s, whose sound takes 2.04 s"):
        planned(PREFIX2, drive=sound(2))


def test_an_endless_stream_cannot_be_driven():
    with pytest.raises(ValueError, match="must be given for a stream that is made to a file"):
        open_stream(student(), PROMPT, drive=Condition(sound=sound(1)))
