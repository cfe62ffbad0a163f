"""What is done to a clip moves the figures that it must move, and no others."""

import functools

import numpy as np
import pytest
from judged import damaged, figures_of_truth, media, moved, truth

from experiments import judge_controls
from omniforcing_jax.judge import report
from omniforcing_jax.judge.seams import Blocks
from omniforcing_jax.judge.sound import RATE


@pytest.fixture(autouse=True)
def _rendered_at_the_rate_of_the_judge(monkeypatch):
    monkeypatch.setattr(judge_controls, "RATE", RATE)


def test_the_truth_is_on_time_and_without_seams_or_drift():
    truth = judge_controls.flatten(figures_of_truth())
    still = {**dict.fromkeys(truth, 0.0), "level_spread_db": truth["level_spread_db"], "place_correlation": 1.0}
    assert judge_controls.find(judge_controls.flatten(figures_of_truth()), still) == set()
    assert figures_of_truth()["synchrony"]["correlation"] > 0.6


@pytest.mark.parametrize("what", judge_controls.DAMAGES)
def test_a_damage_moves_its_figures_and_no_others(what):
    damage = judge_controls.DAMAGES[what]
    found = moved(report.judge_media(damaged(damage.do), Blocks()))
    assert damage.moves <= found <= damage.moves | damage.entails


def test_noise_that_turns_dull_moves_the_tilt_alone():
    noise = np.random.default_rng(0).normal(0, 0.05, 13 * RATE)
    dull = sum(np.roll(noise, shift) for shift in range(4)) / 2  # of the same loudness
    mix = np.sqrt(np.linspace(0, 1, len(noise)))
    drift = report.judge_media(media(audio=(np.sqrt(1 - mix**2) * noise + mix * dull)[:, None]), Blocks())["drift"][
        "sound"
    ]
    tilted, *others = ("tilt_db_per_octave", "loudness_db", "noise_floor_db")
    assert drift[tilted]["change"] < -judge_controls.TOLERANCE[tilted]
    assert all(abs(drift[name]["change"]) < judge_controls.TOLERANCE[name] for name in others)


@functools.cache
def lag(seconds):
    shift = functools.partial(judge_controls.shift_sound, seconds=seconds)
    return report.judge_media(damaged(shift), Blocks())["synchrony"]["lag_ms"]


@pytest.mark.parametrize("ms", [-300, -40, 120, 300])
def test_the_lag_follows_the_sound_to_15_ms(ms):
    assert lag(ms / 1000) - lag(0.0) == pytest.approx(ms, abs=15)


def test_the_sound_of_another_world_does_not_correlate():
    figures = report.judge_media(damaged(lambda clip: (clip[0], truth(seed=5)[1])), Blocks())
    assert figures["synchrony"]["correlation"] < 0.7 * figures_of_truth()["synchrony"]["correlation"]
