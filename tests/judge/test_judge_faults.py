"""Black, repeated and frozen frames and flashes: counted where they were put, and as FFmpeg's filters find them."""

import dataclasses

import av
import numpy as np
import pytest
from judged import FRAME_RATE, truth, watch

from omniforcing_jax.judge.faults import find_black, find_faults, find_flashes, find_repeats
from omniforcing_jax.judge.picture import PAUSE_S

NONE = {"black_share": 0, "duplicate_share": 0, "freeze_s": 0, "flashes": 0}


def spoiled():
    """Return four seconds: frames 20 to 22 black, 40 to 69 frozen, 80 white, 90 and 91 white."""
    video = truth()[0][: 4 * FRAME_RATE].copy()
    video[20:23] = 0
    video[40:70] = video[40]
    video[[80, 90, 91]] = 255
    return video


def filtered(video, name, options, key):
    """Return what a filter of FFmpeg says of each frame; None where it says nothing."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=64, format="gray", time_base="1/24")
    sink = graph.add("buffersink")
    graph.link_nodes(source, graph.add(name, options), sink).configure()
    said = []
    for i, frame in enumerate(video):
        frame = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="gray")
        frame.pts = i
        source.push(frame)
        said.append(sink.pull().metadata.get(key))
    return said


def test_the_truth_has_no_fault():
    assert find_faults(watch(truth()[0])) == NONE


def test_faults_are_counted_where_they_are():
    found = find_faults(watch(spoiled()))
    assert found["black_share"] == pytest.approx(3 / 96)
    assert found["duplicate_share"] == pytest.approx((2 + 29 + 1) / 95)
    assert found["freeze_s"] == pytest.approx(29 / FRAME_RATE)
    assert found["flashes"] == 2


def test_black_frames_are_those_of_ffmpeg():
    options = "d=0:picture_black_ratio_th=0.98:pixel_black_th=0.1"
    start, end = (
        [float(text) for text in filtered(spoiled(), "blackdetect", options, f"lavfi.black_{edge}") if text]
        for edge in ("start", "end")
    )
    black = np.flatnonzero(find_black(watch(spoiled())))
    assert [start, end] == [[pytest.approx(black[0] / FRAME_RATE)], [pytest.approx((black[-1] + 1) / FRAME_RATE)]]
    assert len(black) == black[-1] + 1 - black[0]


def test_a_freeze_begins_where_ffmpeg_says_it_does():
    begun = filtered(spoiled(), "freezedetect", "n=0.001:d=1", "lavfi.freezedetect.freeze_start")
    (start,) = {float(text) for text in begun if text is not None}
    repeats = find_repeats(watch(spoiled()))
    assert not repeats[round(start * FRAME_RATE)]  # the frame that is shown on
    assert repeats[round(start * FRAME_RATE) + 1 : 70].all()


@pytest.mark.parametrize("length", [1, 3, 6])
def test_a_flash_goes_back_and_is_short(length):
    video = np.full((60, 16, 16, 3), 60, np.uint8)
    video[30 : 30 + length] = 120
    inside = find_flashes(watch(video))
    assert inside.sum() == (length if length / FRAME_RATE <= PAUSE_S else 0)
    assert find_flashes(watch(255 - video)).tolist() == inside.tolist()


@pytest.mark.parametrize(("rate", "held", "flashes"), [(20, 3, 1), (20, 4, 0), (1, 1, 0), (24, 1, 1)])
def test_how_long_a_flash_is_is_time_and_not_frames(rate, held, flashes):
    video = np.full((60, 16, 16, 3), 60, np.uint8)
    video[30 : 30 + held] = 120
    picture = watch(video)
    timed = dataclasses.replace(picture, times=np.arange(60) / rate)
    assert find_faults(timed)["flashes"] == flashes
    late = dataclasses.replace(timed, times=timed.times + np.where(np.arange(60) > 30, 2, 0))
    assert find_faults(late)["flashes"] == 0  # a frame that is held for two seconds


def test_a_cut_to_a_brighter_scene_is_no_flash():
    video = np.full((60, 16, 16, 3), 60, np.uint8)
    video[30:] = 160
    assert find_faults(watch(video))["flashes"] == 0


def test_three_frames_are_enough():
    assert find_faults(watch(np.zeros((3, 16, 16, 3), np.uint8)))["black_share"] == 1
