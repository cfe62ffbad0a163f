"""The figures of the bench: pooled as the metrics pool them, and moved by what they are of and by nothing else."""

import numpy as np
import pytest
from test_chime_metrics import _clip, _events

from omniforcing_jax.chime import metrics, physics, render
from omniforcing_jax.chime.figures import FIGURES, pool_clips, stereo_errors
from omniforcing_jax.chime.film import Film
from omniforcing_jax.chime.prompts import Request

BOTH = Request(count=2, colours=("red", "blue"))


@pytest.fixture(scope="module")
def film():
    scene = physics.sample_world([992, 4], colours=BOTH.colours)
    return Film(render.render_video(scene, 97), render.render_audio(scene, 97_000), 24_000)


@pytest.fixture(scope="module")
def truth(film):
    return metrics.perceive(film, BOTH)


def heard_as(truth, audio):
    return metrics.Perceived(picture=truth.picture, sound=metrics.hear(audio, 24_000), request=BOTH)


def moved(before, after):
    """Names of the figures that differ by more than rounding does."""
    known = [name for name in FIGURES if before[name] is not None or after[name] is not None]
    return {name for name in known if before[name] != pytest.approx(after[name], rel=1e-3, abs=1e-3)}


def test_what_the_metrics_say_too_is_pooled_alike():
    red = Request(count=1, colours=("red",))
    clips = [
        _clip(_events(1, 2, 3, 4), _events(1.01, 2.03, 2.5, 3.5), request=red),
        _clip(_events(1), [], colours=(2,), request=red),
        _clip(_events(0.05, 2), _events(2.5, 4.95)),
    ]
    judged, pooled = metrics.judge_clips(clips), pool_clips(clips)
    for name in FIGURES.keys() & judged.keys():
        assert pooled[name] == pytest.approx(judged[name]), name
    assert pooled["presence_1"] == 0.5
    assert pooled["presence_2"] is None
    assert pooled["stereo_error_db"] is None
    assert pooled["black_share"] is None


def test_swapped_sides_move_the_stereo_error_and_nothing_else(truth, film):
    before, after = pool_clips([truth]), pool_clips([heard_as(truth, film.audio[:, ::-1])])
    assert before["stereo_error_db"] < 0.3
    assert after["stereo_error_db"] > 5
    assert moved(before, after) <= {"stereo_error_db", "stereo_bias_db"}


def test_mono_is_as_wrong_as_the_places_are_far_from_the_middle(truth, film):
    mono = heard_as(truth, np.repeat(film.audio.mean(axis=1, keepdims=True), 2, axis=1))
    places = [truth.picture.impacts[i].place for i, _ in metrics.match(truth.picture.impacts, mono.sound.onsets)]
    expected = [-20 * np.log10(1 / np.tan(place * np.pi / 2)) for place in places]
    assert sorted(stereo_errors(mono)) == pytest.approx(sorted(expected), abs=0.01)


def test_a_colour_that_is_a_tenth_darker_is_a_tenth_less_pure(truth, film):
    faded = film.video * 0.9
    after = pool_clips(
        [metrics.Perceived(picture=metrics.see(faded.astype(np.uint8)), sound=truth.sound, request=BOTH)]
    )
    assert pool_clips([truth])["colour_purity"] > 0.99
    assert 0.85 < after["colour_purity"] < 0.93


def test_black_and_repeated_frames_and_flashes_are_counted(truth, film):
    video = film.video.copy()
    video[20:23], video[40:52], video[70] = 0, video[40], 255
    after = pool_clips([metrics.Perceived(picture=metrics.see(video), sound=truth.sound, request=BOTH)])
    assert after["black_share"] == pytest.approx(3 / 97)
    assert after["duplicate_share"] == pytest.approx((2 + 11) / 96)
    assert after["freeze_s"] == pytest.approx(11 / 24)
    assert after["flashes"] == 1
