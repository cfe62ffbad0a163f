"""Metrics on events made by hand, where every figure is known, and on clips that drift on purpose."""

import numpy as np
import pytest

from omniforcing_jax.chime import metrics, physics, render
from omniforcing_jax.chime.detect import Event
from omniforcing_jax.chime.prompts import Request
from omniforcing_jax.chime.track import Tracks

KEYS = {
    "sync_ms_p50",
    "sync_ms_p95",
    "sync_recall",
    "sync_precision",
    "count_accuracy",
    "colour_accuracy",
    "pitch_accuracy",
    "adherence",
    "drift",
}


def _events(*times, colour=0):
    return [Event(time=float(t), colour=colour, strength=1.0) for t in times]


def _tracks(frames, colours):
    visible = np.zeros((frames, 6))
    visible[:, list(colours)] = 1
    return Tracks(
        centres=np.where(visible[..., None] > 0, 0.5, np.nan) * np.ones((1, 1, 2)),
        spread=np.ones((frames, 6, 2)),
        visible=visible,
        twins=np.zeros((frames, 6), bool),
        strangers=np.zeros(frames, bool),
        colour_error=np.where(visible > 0, 3.0, np.nan),
    )


def _clip(impacts, onsets, seconds=5.0, colours=(0,), request=None):
    picture = metrics.Seen(seconds=seconds, tracks=_tracks(round(24 * seconds), colours), impacts=impacts, frames=None)
    moments = round(seconds / metrics.MOMENT)
    sound = metrics.Heard(onsets=onsets, power=np.full(moments, 0.01), noise=np.full(moments, 1e-6))
    return metrics.Perceived(picture=picture, sound=sound, request=request)


def test_matching_is_one_to_one_and_prefers_the_nearest():
    assert metrics.match(_events(1.0, 1.05), _events(1.04)) == [(1, 0)]
    assert sorted(metrics.match(_events(1.0, 1.05), _events(1.02, 1.06))) == [(0, 0), (1, 1)]


def test_only_the_same_colour_within_the_tolerance_matches():
    assert metrics.match(_events(1.0), _events(1.0, colour=1)) == []
    assert metrics.match(_events(1.0), _events(1.11)) == []
    assert metrics.match(_events(1.0), _events(1.09)) == [(0, 0)]


def test_recall_is_over_impacts_and_precision_over_onsets():
    figures = metrics.judge_clips([_clip(_events(1, 2, 3, 4), _events(1.01, 2.03, 2.5, 3.5, 3.6))])
    assert figures["sync_recall"] == pytest.approx(2 / 4)
    assert figures["sync_precision"] == pytest.approx(2 / 5)
    assert figures["sync_ms_p50"] == pytest.approx(20)
    assert figures["sync_ms_p95"] == pytest.approx(29)


def test_events_are_pooled_over_clips():
    clips = [_clip(_events(1, 2, 3), _events(1, 2, 3)), _clip(_events(1), [])]
    assert metrics.judge_clips(clips)["sync_recall"] == pytest.approx(3 / 4)


def test_an_unmatched_event_at_an_end_of_the_clip_does_not_count_but_a_matched_one_does():
    figures = metrics.judge_clips([_clip(_events(0.05, 2), _events(2.5, 4.95))])
    assert figures["sync_recall"] == 0
    assert figures["sync_precision"] == 0
    figures = metrics.judge_clips([_clip(_events(0.05, 2, 4.95), _events(0.06, 2))])
    assert figures["sync_recall"] == 1
    assert figures["sync_precision"] == 1


def test_clips_are_judged_apart_by_the_number_of_balls_asked_for():
    one, two = Request(count=1, colours=("red",)), Request(count=2, colours=("red", "green"))
    clips = [
        _clip(_events(1, 2), _events(1), colours=(0,), request=one),
        _clip(_events(1), _events(1, 2, 3, 4), colours=(0,), request=two),
        _clip(_events(1), _events(2)),
    ]
    figures = metrics.by_count(clips)
    assert list(figures) == ["1", "2"]
    assert [figures[n]["presence"] for n in figures] == [1.0, 0.5]
    assert [(figures[n]["impacts"], figures[n]["onsets"]) for n in figures] == [(2, 1), (1, 4)]
    assert [(figures[n]["sync_recall"], figures[n]["sync_precision"]) for n in figures] == [(0.5, 1.0), (1.0, 0.25)]
    assert [figures[n]["count_accuracy"] for n in figures] == [1.0, 0.0]


def test_a_clip_without_events_scores_nothing():
    figures = metrics.judge_clips([_clip([], [])])
    assert figures["sync_recall"] == figures["sync_precision"] == 0
    assert figures["sync_ms_p50"] is None


def test_accuracies_are_shares_of_clips_that_fulfil_their_request_exactly():
    red, both = Request(count=1, colours=("red",)), Request(count=2, colours=("yellow", "red"))
    clips = [
        _clip([], _events(1, 2), colours=(0,), request=red),
        _clip([], _events(1, 2) + _events(1.5, 3, colour=1), colours=(0,), request=both),
        _clip([], _events(1, 2, colour=1), colours=(2,), request=red),
        _clip([], _events(1, 2, colour=3), colours=(0, 1), request=both),
    ]
    figures = metrics.judge_clips(clips)
    assert figures["count_accuracy"] == pytest.approx(3 / 4)
    assert figures["colour_accuracy"] == pytest.approx(2 / 4)
    assert figures["pitch_accuracy"] == pytest.approx(2 / 4)
    assert figures["adherence"] == pytest.approx(2 / 4)


def test_a_stray_onset_is_not_a_pitch_heard():
    assert metrics.pitches_heard(_events(1, 2, 3, 4, 5) + _events(2.2, colour=3)) == (0,)
    assert metrics.pitches_heard([]) == ()


def test_without_requests_nothing_is_said_about_the_prompt():
    figures = metrics.judge_clips([_clip(_events(1), _events(1))])
    assert set(figures) == KEYS
    assert figures["count_accuracy"] is None
    assert figures["adherence"] is None


def test_a_short_clip_has_no_drift_and_a_long_one_has_windows_of_five_seconds_or_more():
    assert metrics.judge_clips([_clip([], [], seconds=9.0)])["drift"] is None
    assert metrics.judge_clips([_clip([], [], seconds=12.0)])["drift"]["window_s"] == 5.0
    assert metrics.judge_clips([_clip([], [], seconds=100.0)])["drift"]["window_s"] == pytest.approx(15.0)


def test_drift_compares_the_windows_and_not_what_lies_between():
    impacts = _events(1, 2, 3, 7, 8, 9, 16, 17, 18)
    onsets = _events(1, 2, 3, 16.01, 17.01)
    drift = metrics.judge_clips([_clip(impacts, onsets, seconds=20.0)])["drift"]
    assert set(drift) == {"window_s", "first", "last"}
    assert drift["first"]["sync_recall"] == 1
    assert drift["last"]["sync_recall"] == pytest.approx(2 / 3)
    assert drift["last"]["sync_ms_p50"] == pytest.approx(10)
    assert drift["first"]["loudness_db"] == pytest.approx(-20)
    assert drift["first"]["noise_floor_db"] == pytest.approx(-60)
    assert drift["first"]["colour_error"] == pytest.approx(3)


def test_a_part_of_a_clip_is_judged_as_a_clip_of_its_own():
    clip = _clip(_events(1, 2, 6, 7), _events(1.01, 6.02), seconds=10.0)
    part = metrics.cut(clip, 5.0, 10.0)
    assert [event.time for event in part.picture.impacts] == pytest.approx([1, 2])
    assert metrics.judge_clips([part])["sync_recall"] == pytest.approx(1 / 2)
    assert metrics.judge_clips([part])["sync_ms_p50"] == pytest.approx(20)
    assert (part.picture.seconds, len(part.picture.tracks.visible), len(part.sound.power)) == (5, 120, 100)
    assert metrics.cut(clip, 0.0, 10.0).sound.onsets == clip.sound.onsets


def test_fading_colours_falling_loudness_and_rising_noise_show_as_drift():
    scene = physics.sample_world([991, 0], colours=["red", "green"])
    video, audio = render.render_video(scene, 24 * 11), render.render_audio(scene, 24_000 * 11)
    half = 24 * 11 // 2
    video[half:] = video[half:] * 0.85
    noise = np.random.default_rng(0).normal(0, 1e-3, audio.shape)
    noise[: len(noise) // 2] *= 0.1
    audio[len(audio) // 2 :] *= 0.5
    sound = metrics.hear((audio + noise).astype(np.float32), 24_000)
    clip = metrics.Perceived(
        picture=metrics.see(video), sound=sound, request=Request(count=2, colours=("red", "green"))
    )
    drift = metrics.judge_clips([clip])["drift"]
    first, last = drift["first"], drift["last"]
    assert last["colour_error"] > first["colour_error"] + 15
    assert -9 < last["loudness_db"] - first["loudness_db"] < -3
    assert last["noise_floor_db"] == pytest.approx(first["noise_floor_db"] + 20, abs=2)
    assert first["count_accuracy"] == last["count_accuracy"] == 1


def test_white_noise_has_the_floor_of_its_own_level_outside_the_tones():
    noise = np.random.default_rng(0).normal(0, 0.01, (48_000, 2)).astype(np.float32)
    sound = metrics.hear(noise, 24_000)
    share = (300 + 8000) / 12_000  # of the spectrum that counts as noise
    assert 10 * np.log10(sound.noise.mean()) == pytest.approx(-40 + 10 * np.log10(share), abs=0.5)
