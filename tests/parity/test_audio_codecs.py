"""Log-mel, audio VAE and vocoder against the peers: ltx-core's AudioProcessor and diffusers, random weights.

torchaudio is not installed; the one class of it that ltx-core's AudioProcessor needs is stood in for by torch.stft and
transformers' mel filterbank, so that the processor's own arguments and code are what is compared.
"""

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers.audio_utils import mel_filter_bank

from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.mel import LTX2_MEL, filterbank, log_mel
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderConfig

VAE = AudioVAEConfig(base_channels=32, z_channels=2)
VOCODER = VocoderConfig(channels=(64, 32, 16, 8, 4, 2))

VAE_NAMES = (
    (r"^(encoder\.down|decoder\.up)\.(\d)\.block\.(\d)\.", r"\1_\2_block_\3."),
    (r"^(encoder\.down|decoder\.up)\.(\d)\.(down|up)sample\.", r"\1_\2_\3sample."),
    (r"\.mid\.block_", r".mid_block_"),
    (r"\.nin_shortcut\.conv\.", r".shortcut."),
    (r"\.weight$", r".kernel"),
)
VOCODER_NAMES = (
    (
        r"^resnets\.(\d+)\.convs(\d)\.(\d)\.",
        lambda m: f"stage_{int(m[1]) // 3}_block_{int(m[1]) % 3}.conv{m[2]}_{m[3]}.conv.",
    ),
    (r"^upsamplers\.(\d)\.", r"up_\1."),
    (r"^conv_(in|out)\.", r"conv_\1.conv."),
    (r"\.weight$", r".kernel"),
)


def randomise(module, seed):
    """Give every parameter a random value that matters: kernels of unit gain, biases of a tenth."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return module.eval()


def to_flax(module, names):
    """Rename and transpose a torch module's parameters to our tree."""
    tree = {}
    for name, value in module.named_parameters():
        kernel = value.detach().numpy()
        if name.startswith("upsamplers") and kernel.ndim == 3:
            kernel = kernel.transpose(2, 0, 1)
        elif kernel.ndim > 1:
            kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        *folders, leaf = name.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(kernel)
    return tree


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(x):
    """[B, T, bins, channels] to [B, channels, T, bins]."""
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.fixture(scope="module")
def vaes():
    peer = randomise(AutoencoderKLLTX2Audio(base_channels=32, latent_channels=2), 1)
    size = VAE.latent_size
    stats = {"mean": jnp.asarray(normal(2, size)), "std": jnp.asarray(0.5 + np.abs(normal(3, size)))}
    return peer, {"params": to_flax(peer, VAE_NAMES), "stats": stats}


def test_every_weight_of_the_audio_vae_has_its_place(vaes):
    _, variables = vaes
    ours = jax.eval_shape(AudioVAE(VAE).init, jax.random.key(0), jnp.zeros((1, 5, 64, 2)))
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, ours["params"])


def test_the_audio_encoder_equals_diffusers(vaes, strict):
    peer, variables = vaes
    mel = normal(4, 2, 41, 64, 2)
    moments = jax.jit(lambda v, x: AudioVAE(VAE).apply(v, x, method="moments"))(variables, mel)
    with torch.no_grad():
        expected = peer.encode(to_torch(mel)).latent_dist
    for ours, theirs in ((moments.mean, expected.mean), (moments.logvar, expected.logvar)):
        theirs = theirs.permute(0, 2, 1, 3).flatten(2).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
        assert np.std(theirs) > 0.1


def test_the_audio_decoder_equals_diffusers_after_its_statistics(vaes, strict):
    peer, variables = vaes
    latents = normal(5, 2, 11, VAE.latent_size)
    mel = jax.jit(lambda v, x: AudioVAE(VAE).apply(v, x, method="decode"))(variables, latents)
    raw = latents * np.asarray(variables["stats"]["std"]) + np.asarray(variables["stats"]["mean"])
    with torch.no_grad():
        expected = peer.decode(torch.from_numpy(raw.reshape(2, 11, 2, 16).swapaxes(1, 2).copy())).sample
    np.testing.assert_allclose(mel, np.moveaxis(expected.numpy(), 1, -1), atol=1e-4, rtol=0)
    assert mel.shape == (2, 41, 64, 2)


def test_the_vocoder_equals_diffusers(strict):
    peer = randomise(LTX2Vocoder(hidden_channels=64), 6)
    mel = normal(7, 2, 25, 64, 2)
    samples = jax.jit(Vocoder(VOCODER).apply)({"params": to_flax(peer, VOCODER_NAMES)}, mel)
    with torch.no_grad():
        expected = peer(to_torch(mel)).numpy()
    np.testing.assert_allclose(samples, expected.swapaxes(1, 2), atol=1e-4, rtol=0)
    assert np.std(expected) > 0.05


def test_the_filterbank_equals_transformers():
    expected = mel_filter_bank(513, 64, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filterbank(LTX2_MEL), expected.T, atol=1e-7, rtol=0)


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


def test_the_log_mel_equals_ltx_core(monkeypatch, strict):
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.transforms = types.SimpleNamespace(MelSpectrogram=TorchMelSpectrogram)
    monkeypatch.setitem(sys.modules, "torchaudio", torchaudio)
    from ltx_core.model.audio_vae.ops import AudioProcessor
    from ltx_core.types import Audio

    t = np.arange(16000) / 16000
    waveform = np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0.1 * normal(8, 16000)], -1)[None].astype(np.float32)
    processor = AudioProcessor(target_sample_rate=16000, mel_bins=64, mel_hop_length=160, n_fft=1024)
    expected = processor.waveform_to_mel(Audio(waveform=torch.from_numpy(waveform.swapaxes(1, 2)), sampling_rate=16000))
    mel = jax.jit(log_mel)(waveform)
    assert mel.shape == (1, 101, 64, 2)
    np.testing.assert_allclose(mel, np.moveaxis(expected.numpy(), 1, -1), atol=1e-2, rtol=0)
    loud = expected.numpy() > -7
    np.testing.assert_allclose(np.moveaxis(np.asarray(mel), -1, 1)[loud], expected.numpy()[loud], atol=1e-4, rtol=0)
