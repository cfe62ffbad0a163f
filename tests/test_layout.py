import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from partial_blocks import blocks_with_rest

from omniforcing_jax.layout import (
    FUSED,
    PREFIX,
    PREFIX2,
    Layout,
    audio_latents,
    audio_seconds,
    block_of_frames,
    latent_frames,
    pixel_frames,
    video_seconds,
)

LAYOUTS = [
    PREFIX,
    PREFIX2,
    FUSED,
    Layout(first_v=1, first_a=1, step_v=6, step_a=50),
    Layout(first_v=7, first_a=51, step_v=3, step_a=25),
]


def test_prefix_layout_has_the_papers_block_table():
    assert [tuple(b) for b in PREFIX.blocks(10)] == [(0, 1, 0, 1), (1, 4, 1, 26), (4, 7, 26, 51), (7, 10, 51, 76)]


def test_fused_layout_has_the_releases_block_table():
    assert [tuple(b) for b in FUSED.blocks(10)] == [(0, 4, 0, 26), (4, 7, 26, 51), (7, 10, 51, 76)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_blocks_are_contiguous_and_end_where_the_teacher_does(layout, count):
    blocks = [layout.block(k) for k in range(count)]
    assert blocks[0].video_start == blocks[0].audio_start == 0
    for before, after in itertools.pairwise(blocks):
        assert (before.video_end, before.audio_end) == (after.video_start, after.audio_start)
    assert layout.blocks(blocks[-1].video_end) == tuple(blocks)
    assert blocks[-1].audio_end == audio_latents(blocks[-1].video_end) + layout.extra_a


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [0, 1, 9])
def test_sound_ends_as_far_from_its_picture_after_every_block(layout, k):
    end = layout.block(k)
    rows = 1 + 4 * (end.audio_end - 1)
    assert Fraction(rows, 100) - Fraction(pixel_frames(end.video_end), 24) == layout.sound_lead
    assert layout.sound_lead == Fraction(1, 120) if layout.extra_a else Fraction(-19, 600)
    assert layout.sound_seconds(k + 1) == (rows - 1) / 100


@given(j=st.integers(0, 2000))
def test_audio_count_rounds_the_clips_seconds(j):
    frames = 1 + 8 * j
    assert audio_latents(latent_frames(frames)) == round(frames / 24 * 25)
    assert pixel_frames(latent_frames(frames)) == frames


@pytest.mark.parametrize("frames", [0, -7, 2, 8, 24, 120])
def test_pixel_frames_off_the_grid_are_refused(frames):
    with pytest.raises(ValueError, match=f"pixel_frames={frames}: must be 1 \\+ 8 j"):
        latent_frames(frames)


@pytest.mark.parametrize(("layout", "frames"), [(PREFIX, 2), (PREFIX, 6), (FUSED, 1), (FUSED, 8), (FUSED, 3)])
def test_an_incomplete_last_block_is_refused(layout, frames):
    with pytest.raises(ValueError, match=f"latent_frames={frames}: must be"):
        layout.blocks(frames)


def test_the_partial_blocks_of_recordings_round_their_audio_down():
    assert [blocks_with_rest(PREFIX, n)[-1].audio_end for n in (5, 6, 7)] == [34, 42, 51]


def test_a_clip_whose_audio_has_another_length_is_refused():
    with pytest.raises(ValueError, match="audio_frames=75: 10 video latent frames go with 76"):
        PREFIX.check_clip(10, 75)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"first_v": 2, "first_a": 2, "step_v": 3, "step_a": 25}, "first_v=2"),
        ({"first_v": 4, "first_a": 25, "step_v": 3, "step_a": 25}, "first_a=25"),
        ({"first_v": 1, "first_a": 3, "step_v": 3, "step_a": 25}, "first_a=3: must be 1 \\+ 3 s, and 1 \\+ 25 s or 2"),
        ({"first_v": 1, "first_a": 1, "step_v": 4, "step_a": 25}, "step_v=4"),
        ({"first_v": 1, "first_a": 1, "step_v": 0, "step_a": 0}, "step_v=0"),
    ],
)
def test_layouts_without_whole_seconds_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        Layout(**layout)


def test_seconds_that_do_not_fit_name_the_lengths_that_do():
    layout = Layout(first_v=1, first_a=1, step_v=6, step_a=50)
    assert layout.frames_for(4) == 97
    with pytest.raises(ValueError, match=r"seconds=5.*nearest allowed are 4 and 6"):
        layout.frames_for(5)
    with pytest.raises(ValueError, match=r"seconds=2\.5.*nearest allowed are 2 and 3"):
        PREFIX.frames_for(2.5)
    with pytest.raises(ValueError, match=r"seconds=0.*nearest allowed are 1"):
        FUSED.frames_for(0)


def test_midpoints_are_those_of_pixel_frames_and_mel_rows():
    np.testing.assert_allclose(video_seconds(0, 3), [1 / 48, 5 / 24, 13 / 24], rtol=1e-15)
    np.testing.assert_allclose(audio_seconds(0, 3), [0.005, 0.03, 0.07], rtol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_later_blocks_repeat_the_same_seconds_a_whole_number_later(layout):
    one, nine = layout.block(1), layout.block(9)
    shift = layout.start_seconds(9) - layout.start_seconds(1)
    assert shift == 8 * layout.step_seconds
    for seconds, start, count in (("v", 0, 1), ("a", 2, 3)):
        function = video_seconds if seconds == "v" else audio_seconds
        sizes = (one[count] - one[start], nine[count] - nine[start])
        np.testing.assert_allclose(function(nine[start], sizes[1]), function(one[start], sizes[0]) + shift, rtol=1e-14)


def test_every_frame_knows_its_block():
    video, audio = block_of_frames(PREFIX.blocks(7))
    assert video.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert np.bincount(audio).tolist() == [1, 25, 25]
