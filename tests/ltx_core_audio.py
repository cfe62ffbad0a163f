"""ltx-core's audio package without torchaudio, which is not installed.

The one class of it that is ever called is stood in for by torch.stft and transformers' mel filterbank, so that
ltx-core's own arguments and code are what is compared.
"""

import sys
import types

import pytest
import torch
from transformers.audio_utils import mel_filter_bank


class TorchMelSpectrogram(torch.nn.Module):
    """What torchaudio's class of this name computes, for the arguments that ltx-core passes."""

    def __init__(self, *, sample_rate, n_fft, win_length, hop_length, power, window_fn, center, pad_mode, **mel):
        super().__init__()
        self.power, self.window = power, window_fn(win_length)
        self.options = {"n_fft": n_fft, "hop_length": hop_length, "center": center, "pad_mode": pad_mode}
        edges = mel["f_min"], mel["f_max"], sample_rate
        bank = mel_filter_bank(n_fft // 2 + 1, mel["n_mels"], *edges, norm=mel["norm"], mel_scale=mel["mel_scale"])
        self.bank = torch.from_numpy(bank).float()

    def forward(self, waveform):
        flat = waveform.flatten(0, -2)
        spectrum = torch.stft(flat, **self.options, window=self.window, return_complex=True).abs() ** self.power
        return (spectrum.mT @ self.bank).mT.unflatten(0, waveform.shape[:-1])


stand_in = types.ModuleType("torchaudio")
setattr(stand_in, "transforms", types.SimpleNamespace(MelSpectrogram=TorchMelSpectrogram))  # noqa: B010
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "torchaudio", stand_in)
    from ltx_core.model.audio_vae import model_configurator, ops

__all__ = ["model_configurator", "ops"]
