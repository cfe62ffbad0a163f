"""Seams: found at the period and the phase that were asked for, and nowhere else."""

import numpy as np
import pytest
from judged import listen

from omniforcing_jax.judge.picture import Picture
from omniforcing_jax.judge.seams import Blocks, Kind, picture_profiles, sound_profiles, stand_out
from omniforcing_jax.judge.sound import RATE

FRAME_S = 1 / 25


def clicking(period_s, first_s, seconds=12.0):
    """Noise with a click at every border."""
    audio = np.random.default_rng(1).normal(0, 0.01, (round(seconds * RATE), 1))
    for time in np.arange(first_s, seconds, period_s):
        audio[round(time * RATE)] += 0.5
    return listen(audio)


def click_figure(sound, blocks):
    return sound_profiles(sound, blocks, 0.0, FRAME_S)["click"].figure()


@pytest.mark.parametrize(("period_s", "first_frames"), [(1.0, 1), (0.72, 1), (1.0, 20)])
def test_clicks_are_found_at_the_period_and_phase_that_they_have(period_s, first_frames):
    figure = click_figure(
        clicking(period_s, first_frames * FRAME_S), Blocks(seconds=period_s, first_frames=first_frames)
    )
    assert figure["ratio"] > 3 * figure["highest_elsewhere"]


@pytest.mark.parametrize("blocks", [Blocks(seconds=0.8), Blocks(seconds=1.0, first_frames=10)])
def test_clicks_elsewhere_are_no_seam(blocks):
    figure = click_figure(clicking(1.0, FRAME_S), blocks)
    assert figure["ratio"] < 1.5 * figure["highest_elsewhere"]


def test_one_click_on_one_of_many_borders_is_no_seam():
    figure = click_figure(clicking(100.0, FRAME_S + 3), Blocks())
    assert figure["ratio"] < 1.5 * figure["highest_elsewhere"]


def test_a_step_in_the_spectrum_at_borders_is_found_without_a_click():
    rng = np.random.default_rng(2)
    white = rng.normal(0, 0.02, 12 * RATE)
    dull = np.convolve(white, np.ones(4) / 2, mode="same")
    block = ((np.arange(12 * RATE) / RATE - FRAME_S) // 1.0).astype(int) % 2
    profiles = sound_profiles(listen(np.where(block, white, dull)[:, None]), Blocks(), 0.0, FRAME_S)
    figures = {name: profile.figure() for name, profile in profiles.items()}
    assert figures["spectrum"]["ratio"] > 1.5 * figures["spectrum"]["highest_elsewhere"]
    assert figures["click"]["ratio"] < 1.5 * figures["click"]["highest_elsewhere"]


def picture(change=None, brightness=None, sharpness=None, frames=300):
    base = np.random.default_rng(3).uniform(0.01, 0.02, frames)
    given = {"change": change, "brightness": brightness, "sharpness": sharpness}
    made = {name: base if values is None else values for name, values in given.items()}
    still = dict.fromkeys(("event", "event_side", "largest", "dark", "saturation"), base)
    return Picture(height=8, width=8, times=np.arange(frames) * FRAME_S, **still, **made)


@pytest.mark.parametrize("what", ["brightness", "sharpness"])
def test_a_step_of_one_measure_at_borders_is_a_seam_of_that_measure_only(what):
    block = (np.arange(300) - 1) // 25
    values = np.random.default_rng(4).uniform(0.3, 0.301, 300) + 0.05 * (block % 2)
    profiles = picture_profiles(picture(**{what: values}), Blocks())
    figures = {name: profile.figure() for name, profile in profiles.items()}
    for name, figure in figures.items():
        assert (figure["ratio"] > 1.5 * figure["highest_elsewhere"]) == (name == what), (name, figure)


def test_a_border_that_is_better_than_other_places_has_a_ratio_below_one():
    change = np.full(300, 0.02)
    change[1::25] = 0.005
    assert picture_profiles(picture(change=change), Blocks())["change"].figure()["ratio"] < 0.5


def test_a_picture_where_nothing_happens_has_ratios_of_one():
    profiles = picture_profiles(picture(change=np.zeros(300), brightness=np.full(300, 0.5)), Blocks())
    assert profiles["change"].figure() == {"ratio": 1.0, "highest_elsewhere": 1.0}
    assert profiles["brightness"].figure() == {"ratio": 1.0, "highest_elsewhere": 1.0}


def test_a_clip_with_one_border_has_no_figures():
    assert set(picture_profiles(picture(frames=26), Blocks()).values()) == {None}


def test_a_step_up_that_lasts_does_not_stand_out_and_a_peak_does():
    kind = Kind(step_s=0.01, near=0, gap=1, width=4, floor=0.0)
    lasting, peak = np.ones(60), np.ones(60)
    lasting[30:] = 9
    peak[30] = 9
    assert stand_out(lasting, kind).max() == pytest.approx(0)
    assert np.argmax(stand_out(peak, kind)) == 30
    assert stand_out(peak, kind)[30] == pytest.approx(np.log(9))


@pytest.mark.parametrize(
    ("options", "named"), [({"seconds": 0.0}, "block-seconds=0"), ({"first_frames": 0}, "first-block-frames=0")]
)
def test_blocks_without_length_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        Blocks(**options)
