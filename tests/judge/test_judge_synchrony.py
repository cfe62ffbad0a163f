"""The lag: flashes and clicks at known times, at any frame rate, and what cannot be correlated."""

import numpy as np
import pytest
from judged import listen, truth, watch

from omniforcing_jax.judge.sound import RATE
from omniforcing_jax.judge.synchrony import correlate, measure_synchrony

TIMES = np.array([0.7, 1.9, 2.5, 4.1, 5.6, 6.3])  # seconds
LENGTH = 8.0


def pulses(frame_rate, late_s=0.0, channels=1):
    """A square that jumps at known times, and a burst of noise at each of them."""
    rng = np.random.default_rng(0)
    frames = np.arange(round(LENGTH * frame_rate)) / frame_rate
    video = np.full((len(frames), 36, 48, 3), 40, np.uint8)
    for frame, jumps in enumerate((frames[:, None] >= TIMES - 1e-9).sum(1)):
        video[frame, 8:24, 4 + 4 * jumps : 12 + 4 * jumps] = 200
    audio = rng.normal(0, 1e-3, (round(LENGTH * RATE), channels))
    for time in TIMES + late_s:
        start = round(time * RATE)
        decay = np.exp(-np.arange(2000) / 500)[:, None]
        audio[start : start + 2000] += 0.2 * decay * rng.normal(size=(2000, channels))
    return video, audio


@pytest.mark.parametrize(("frame_rate", "channels"), [(25, 1), (60, 2), (12.5, 6)])
def test_flashes_with_bursts_are_on_time_at_any_frame_rate(frame_rate, channels):
    video, audio = pulses(frame_rate, channels=channels)
    figures = measure_synchrony(correlate(watch(video, frame_rate), listen(audio)))
    # A jump is seen as an event between two frames: half a frame is the most that it may be off.
    assert abs(figures["lag_ms"]) <= 500 / frame_rate
    assert figures["correlation"] > 0.5
    assert figures["confidence"] > 0.3


@pytest.mark.parametrize("late_ms", [-200, 120])
def test_late_bursts_are_heard_late(late_ms):
    video, audio = pulses(30, late_ms / 1000)
    figures = measure_synchrony(correlate(watch(video, 30), listen(audio)))
    assert figures["lag_ms"] == pytest.approx(late_ms, abs=15)


def test_a_sound_whose_stream_begins_later_is_late():
    video, audio = pulses(30)
    figures = measure_synchrony(correlate(watch(video, 30), listen(audio, start_s=0.1)))
    assert figures["lag_ms"] == pytest.approx(100, abs=15)


def test_frames_shown_twice_do_not_hide_the_events():
    video, audio = truth()
    picture = watch(np.repeat(video[::2], 2, axis=0)[: len(video)])
    figures = measure_synchrony(correlate(picture, listen(audio)))
    assert abs(figures["lag_ms"]) <= 25
    assert figures["correlation"] > 0.4


@pytest.mark.parametrize("what", ["silence", "a still picture", "a second"])
def test_what_holds_no_events_or_is_too_short_is_not_correlated(what):
    video, audio = pulses(25)
    if what == "silence":
        audio = np.zeros_like(audio)
    if what == "a still picture":
        video = video[:1].repeat(len(video), axis=0)
    if what == "a second":
        video = video[:25]
    assert measure_synchrony(correlate(watch(video, 25), listen(audio))) is None
