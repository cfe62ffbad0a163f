"""Fragments: what PyAV and browsers make of them."""

import io

import av
import numpy as np
import pytest

from omniforcing_jax.serve.fragments import Fragmenter, digest
from omniforcing_jax.serve.mock import MockSource


def fragments_of(source, fragmenter, blocks):
    found = [fragmenter.push(source.make()) for _ in range(blocks)]
    return [each for each in [*found, fragmenter.close()] if each is not None]


def new_fragmenter(**values):
    return Fragmenter(height=64, width=64, sample_rate=24_000, **values)


def decode(data):
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.time for frame in file.decode(video=0)]
    with av.open(io.BytesIO(data)) as file:
        sound = [(frame.time, frame.samples) for frame in file.decode(audio=0)]
    return frames, sound


@pytest.fixture(scope="module")
def made():
    fragmenter = new_fragmenter()
    return fragmenter, fragments_of(MockSource(0, "a red ball"), fragmenter, 5)


def test_header_and_fragments_are_one_file(made):
    fragmenter, fragments = made
    frames, sound = decode(fragmenter.init + b"".join(each.data for each in fragments))
    np.testing.assert_allclose(frames, np.arange(97) / 24, atol=1e-4)
    ends = [time + samples / 24_000 for time, samples in sound]
    np.testing.assert_allclose([time for time, _ in sound][1:], ends[:-1], atol=1e-4)
    assert sound[0][0] == pytest.approx(0, abs=1e-4)
    assert ends[-1] == pytest.approx(97 / 24, abs=0.05)


def test_any_run_of_fragments_plays_with_its_own_times(made):
    fragmenter, fragments = made
    frames, sound = decode(fragmenter.init + fragments[2].data)
    assert frames[0] == pytest.approx(fragments[2].start_s, abs=1e-4)
    assert 0 <= frames[0] - sound[0][0] < 0.15  # the AAC encoder holds three frames of sound back


def test_the_first_fragment_has_picture_and_sound(made):
    _, fragments = made
    assert [mark.index for mark in fragments[0].blocks] in ([0], [0, 1])
    assert [each.number for each in fragments[:4]] == list(range(len(fragments[:4])))


def test_the_media_type_names_both_codecs(made):
    assert made[0].mime.startswith('video/mp4; codecs="avc1.64')
    assert made[0].mime.endswith(', mp4a.40.2"')


def test_all_encoders_of_a_size_make_the_same_header(made):
    assert new_fragmenter().init == made[0].init


def test_a_stream_that_goes_on_keeps_its_clock():
    source = MockSource(0, "a red ball", block=3)
    fragmenter = new_fragmenter(first=2)
    first = fragmenter.push(source.make())
    frames, sound = decode(fragmenter.init + first.data)
    assert (first.number, first.start_s) == (2, pytest.approx(49 / 24))
    assert frames[0] == pytest.approx(49 / 24, abs=1e-4)
    assert sound[0][0] == pytest.approx(49 / 24, abs=0.05)


def test_digests_tell_bits_apart():
    chunk, other = MockSource(0, "a red ball", block=2).make(), MockSource(1, "a red ball", block=2).make()
    assert digest(chunk) == digest(MockSource(0, "a red ball", block=2).make())
    assert digest(chunk) != digest(other)
