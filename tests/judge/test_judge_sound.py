"""The judge's spectra and onset strength are librosa's."""

import librosa
import numpy as np
import pytest

from omniforcing_jax.judge.sound import HOP, RATE, WINDOW, Listener, Sound, spectra
from omniforcing_jax.judge.synchrony import LOOK_BACK, QUIET, onset_strength


def noise(seconds):
    samples = np.random.default_rng(0).normal(0, 0.1, (2, round(seconds * RATE))).astype(np.float32)
    samples[:, : samples.shape[1] // 3] = 0  # an onset out of silence
    return samples


def test_spectra_are_librosas():
    expected = librosa.stft(noise(2), n_fft=WINDOW, hop_length=HOP, center=False)
    found = spectra(noise(2))
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, 2), atol=1e-6 * np.abs(expected).max())


def test_onset_strength_is_librosas():
    listener = Listener(2)
    listener.hear(noise(3))
    sound = listener.sound(sample_rate=RATE, start_s=0.0)
    level = librosa.power_to_db(sound.mel.T, ref=1.0, amin=QUIET, top_db=None)
    expected = librosa.onset.onset_strength(S=level, sr=RATE, hop_length=HOP, lag=LOOK_BACK, center=False)
    np.testing.assert_allclose(onset_strength(sound), expected, rtol=1e-6)


@pytest.mark.parametrize("moments", [1, 2, 3])
def test_a_very_short_sound_has_a_strength_for_every_moment(moments):
    power, mel = np.ones(moments), np.ones((moments, 48), np.float32)
    sound = Sound(sample_rate=RATE, channels=1, start_s=0.0, power=power, mel=mel, edge=power)
    np.testing.assert_array_equal(onset_strength(sound), np.zeros(moments))
