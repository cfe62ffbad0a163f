"""Log-mel: its definition, its rows in time, its borders."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from omniforcing_jax.codecs.mel import LTX2_MEL, MelConfig, filterbank, fit_rows, log_mel, resample, stft_magnitude
from omniforcing_jax.codecs.mel_filters import mel_edges, mel_filters

RATE = LTX2_MEL.sample_rate
SILENCE = np.log(np.float32(LTX2_MEL.floor))


compute = jax.jit(log_mel)


def tone(frequency, samples, rate=RATE):
    return np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


def stereo(left, right):
    return jnp.asarray(np.stack([left, right], axis=-1)[None], jnp.float32)


def test_log_mel_is_the_textbook_formula_in_float64(strict):
    noise = np.random.default_rng(0).standard_normal((2, 8000))
    padded = np.pad(noise, ((0, 0), (512, 512)), mode="reflect")
    window = np.hanning(1025)[:-1]
    frames = np.stack([padded[:, 160 * m : 160 * m + 1024] * window for m in range(51)], axis=1)
    magnitude = np.abs(np.fft.rfft(frames, axis=-1))
    bank = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=0, fmax=8000, htk=False, norm="slaney")
    expected = np.log(np.maximum(magnitude @ bank.T, 1e-5))
    np.testing.assert_allclose(compute(stereo(*noise))[0], np.moveaxis(expected, 0, -1), atol=1e-4)


@pytest.mark.parametrize("samples", [513, 1600, 1599, 1601, 16667])
def test_there_is_a_row_for_every_hop_and_one_more(samples):
    shape = jax.eval_shape(log_mel, jax.ShapeDtypeStruct((3, samples, 2), jnp.float32)).shape
    assert shape == (3, samples // 160 + 1, 64, 2)


def test_row_m_is_centred_on_sample_160_m():
    click = np.zeros(8000)
    click[160 * 13] = 1
    energy = compute(stereo(click, 0 * click))[0, :, :, 0].sum(-1)
    assert int(energy.argmax()) == 13
    np.testing.assert_allclose(energy[13 - 3 : 13], energy[14 : 14 + 3][::-1], rtol=1e-4)


def test_a_tone_is_loudest_in_the_band_around_it_and_in_its_own_channel():
    mel = compute(stereo(0.3 * tone(880, 8000), 0.3 * tone(2000, 8000)))
    centres = librosa.mel_frequencies(66, fmin=0, fmax=8000)[1:-1]
    for channel, frequency in enumerate((880, 2000)):
        assert int(mel[0, 25, :, channel].argmax()) == np.abs(centres - frequency).argmin()


def test_digital_silence_is_the_floor_and_has_a_finite_gradient():
    silence = jnp.zeros((1, 8000, 2))
    np.testing.assert_array_equal(compute(silence), SILENCE)
    gradient = jax.jit(jax.grad(lambda w: stft_magnitude(w, n_fft=256, hop=64).sum()))(silence)
    np.testing.assert_array_equal(gradient, 0)


def test_rows_beyond_the_clip_are_cropped_and_missing_ones_are_silence():
    mel = jnp.ones((1, 105, 64, 2))
    assert fit_rows(mel, 101).shape == (1, 101, 64, 2)
    np.testing.assert_array_equal(fit_rows(mel, 109)[:, :105], 1)
    np.testing.assert_array_equal(fit_rows(mel, 109)[:, 105:], SILENCE)


def test_resampled_sound_keeps_its_place_in_time():
    envelope = np.hanning(24000)
    source = np.stack([tone(700, 24000, 24000) * envelope, tone(3000, 24000, 24000) * envelope], -1)
    expected = np.stack([tone(700, 16000), tone(3000, 16000)], -1) * np.interp(
        np.arange(16000) * 1.5, np.arange(24000), envelope
    ).reshape(-1, 1)
    resampled = resample(source.astype(np.float32), 24000, 16000)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, atol=2e-3)


def test_resampling_keeps_a_batch_and_its_channels_apart():
    noise = np.random.default_rng(1).standard_normal((3, 2400, 2)).astype(np.float32)
    resampled = resample(noise, 24000, 16000)
    assert resampled.shape == (3, 1600, 2)
    np.testing.assert_allclose(resampled[1, :, 1], resample(noise[1, :, 1:], 24000, 16000)[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "n_fft", "bins", "fmin", "fmax"),
    [(16000, 1024, 64, 0.0, 8000.0), (16000, 512, 48, 60.0, 7600.0), (24000, 2048, 100, 30.0, 11000.0)],
)
@pytest.mark.parametrize("norm", ["slaney", None])
def test_filters_are_librosas_to_the_bit(rate, n_fft, bins, fmin, fmax, norm):
    found = mel_filters(sample_rate=rate, n_fft=n_fft, bins=bins, fmin=fmin, fmax=fmax, equal_area=norm is not None)
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bins, fmin=fmin, fmax=fmax, htk=False, norm=norm)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mel_edges(bins, fmin, fmax), librosa.mel_frequencies(bins + 2, fmin=fmin, fmax=fmax))


def test_the_filterbank_is_built_once():
    assert filterbank(MelConfig()) is filterbank(MelConfig())


def test_a_waveform_shorter_than_half_a_window_is_refused():
    with pytest.raises(ValueError, match="512 samples, expected more than half a window"):
        log_mel(jnp.zeros((1, 512, 2)))


def test_a_sample_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="24000 and 0"):
        resample(np.zeros((10, 2), np.float32), 24000, 0)


@pytest.mark.parametrize(
    ("change", "culprit"), [({"fmax": 9000.0}, "fmax"), ({"hop": 0}, "hop"), ({"n_fft": 7}, "n_fft")]
)
def test_a_mel_config_that_makes_no_sense_names_the_field(change, culprit):
    with pytest.raises(ValueError, match=culprit):
        MelConfig(**change)
