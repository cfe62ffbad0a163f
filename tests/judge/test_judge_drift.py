"""Levels in known units, what they do not depend on, and which seconds are compared."""

import numpy as np
import pytest
from judged import listen, watch

from omniforcing_jax.judge.drift import first_and_last, picture_levels, sound_levels, tabulate_change
from omniforcing_jax.judge.picture import sharpness
from omniforcing_jax.judge.sound import RATE

WHOLE = (0.0, 100.0)


def sound_of(samples, channels=1):
    return sound_levels(listen(np.tile(samples[:, None], channels)), WHOLE)


def white(seconds=2.0, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))


def tone(amplitude=0.5, seconds=2.0):
    return amplitude * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * RATE)) / RATE)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_of_half_scale_is_9_db_below_full_scale(channels):
    assert sound_of(tone(), channels)["loudness_db"] == pytest.approx(-9.03, abs=0.05)


@pytest.mark.parametrize("frequency", [200, 1000, 5000])
def test_bands_add_up_to_the_power_of_a_tone(frequency):
    sound = listen(np.sin(2 * np.pi * frequency * np.arange(2 * RATE) / RATE)[:, None])
    assert sound.mel[10:-10].sum(1) == pytest.approx(0.5, rel=0.03)


def test_white_noise_has_no_tilt_and_a_gain_changes_none():
    assert abs(sound_of(white())["tilt_db_per_octave"]) < 0.3
    assert sound_of(0.1 * white())["tilt_db_per_octave"] == pytest.approx(sound_of(white())["tilt_db_per_octave"])


def test_noise_that_falls_by_6_db_per_octave_has_that_tilt():
    red = np.cumsum(white() - white().mean())
    assert sound_of(red / np.abs(red).max())["tilt_db_per_octave"] == pytest.approx(-6, abs=0.7)


def test_the_noise_floor_is_what_is_left_between_tones():
    rng = np.random.default_rng(0)
    rings = np.where(np.arange(4 * RATE) % RATE < RATE // 2, np.tile(tone(), 2), 0)
    hiss = rng.normal(0, 0.001, 4 * RATE)  # -60 dB
    assert sound_of(rings + hiss)["noise_floor_db"] == pytest.approx(-62, abs=3)  # a quietest tenth lies below the mean
    assert sound_of(2 * rings + hiss)["noise_floor_db"] == pytest.approx(
        sound_of(rings + hiss)["noise_floor_db"], abs=1
    )


def test_silence_is_said_to_be_80_db_down_and_has_no_tilt():
    silent = sound_of(np.zeros(RATE))
    assert silent == {"loudness_db": -80.0, "tilt_db_per_octave": None, "noise_floor_db": -80.0}


def drawn(frames=10):
    rng = np.random.default_rng(0)
    return rng.integers(20, 160, (frames, 5, 6, 3)).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


def test_brightness_is_the_mean_luma_and_scales_without_touching_colour_or_sharpness():
    full, half = (picture_levels(watch(frames), WHOLE) for frames in (drawn(), (drawn() // 2).astype(np.uint8)))
    luma = (drawn()[1:] @ np.array([0.2126, 0.7152, 0.0722])).mean() / 255
    assert full["brightness"] == pytest.approx(luma, abs=0.005)
    assert half["brightness"] == pytest.approx(luma / 2, abs=0.005)
    assert half["saturation"] == pytest.approx(full["saturation"], abs=0.01)
    assert half["sharpness"] == pytest.approx(full["sharpness"], abs=0.01)


def test_a_grey_picture_has_no_saturation_and_a_pure_colour_has_all_of_it():
    grey = np.full((4, 32, 32, 3), 90, np.uint8)
    red = grey * np.array([1, 0, 0], np.uint8)
    assert picture_levels(watch(grey), WHOLE)["saturation"] == 0
    assert picture_levels(watch(red), WHOLE)["saturation"] == 1
    assert picture_levels(watch(grey), WHOLE)["sharpness"] is None  # an even colour is neither sharp nor blurred


def test_sharpness_is_highest_for_noise_then_edges_then_ramps():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    edges = np.tile((np.arange(64) // 32 * 200).astype(np.uint8), (64, 1))
    ramp = np.tile((3 * np.arange(64)).astype(np.uint8), (64, 1))
    assert sharpness(noise) == pytest.approx(1, abs=0.05)
    assert sharpness(edges) == pytest.approx(np.sqrt(1 / 8), abs=0.03)
    assert sharpness(ramp) == pytest.approx(1 / 8, abs=0.01)


def test_motion_is_measured_per_second_whatever_the_frame_rate():
    video = drawn(12)
    once, twice = watch(video, 12), watch(video, 24)
    assert picture_levels(twice, WHOLE)["motion"] == pytest.approx(2 * picture_levels(once, WHOLE)["motion"])


def test_a_window_is_15_percent_of_the_clip_and_at_least_5_seconds():
    assert first_and_last(1.0, 61.0) == ((1.0, 10.0), (52.0, 61.0))
    assert first_and_last(0.0, 12.0) == ((0.0, 5.0), (7.0, 12.0))
    assert first_and_last(0.0, 9.9) is None


def test_a_change_is_last_minus_first_and_none_where_one_is_missing():
    table = tabulate_change({"a": 1.0, "b": None}, {"a": 3.0, "b": 2.0})
    assert table == {"a": {"first": 1.0, "last": 3.0, "change": 2.0}, "b": {"first": None, "last": 2.0, "change": None}}


def test_a_window_without_content_is_none():
    assert set(sound_levels(listen(white()[:, None]), (50.0, 60.0)).values()) == {None}
    assert set(picture_levels(watch(drawn()), (50.0, 60.0)).values()) == {None}
