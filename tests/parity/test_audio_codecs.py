"""Log-mel, audio VAE and vocoders against the peers, ltx-core and diffusers: random weights at small widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from codec_peers import normal, randomise, to_ours, to_peer
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from ltx_core.types import Audio
from ltx_core_audio import model_configurator, ops
from random_weights import fill
from transformers.audio_utils import mel_filter_bank

from converters.component import DIFFUSERS, LTX2
from converters.formats import audio_vae, vocoder
from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.bandwidth import ExtensionConfig, fourier_basis, resampling_taps
from omniforcing_jax.codecs.generator import Activation, Final, GeneratorConfig
from omniforcing_jax.codecs.mel import LTX2_MEL, filterbank, log_mel
from omniforcing_jax.codecs.snake import low_pass
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderConfig

VAE = AudioVAEConfig(base_channels=32, z_channels=2)
VOCODER = VocoderConfig(channels=(64, 32, 16, 8, 4, 2))
SNAKES = {"resblock_kernels": (3,), "resblock_dilations": ((1, 3, 5),), "activation": Activation.SNAKE}
EXTENDED = VocoderConfig(
    channels=(16, 8, 4),
    rates=(5, 2),
    kernels=(11, 4),
    final=Final.CLAMP,
    final_bias=False,
    **SNAKES,
    extension=ExtensionConfig(
        generator=GeneratorConfig(
            channels=(12, 6, 3), rates=(5, 3), kernels=(11, 5), final=Final.NONE, final_bias=False, **SNAKES
        ),
        window=256,
        hop=5,
    ),
)


def to_torch(x):
    """[B, T, bins, channels] to [B, channels, T, bins]."""
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.fixture(scope="module")
def vaes():
    peer = AutoencoderKLLTX2Audio.from_config(audio_vae.COMPONENT.namings[DIFFUSERS].table.write(VAE))
    peer.latents_mean.data = torch.from_numpy(normal(2, VAE.latent_size))
    peer.latents_std.data = torch.from_numpy(0.5 + np.abs(normal(3, VAE.latent_size)))
    return peer, to_ours(audio_vae.COMPONENT, DIFFUSERS, VAE, randomise(peer, 1).state_dict())


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
    peer = randomise(LTX2Vocoder.from_config(vocoder.COMPONENT.namings[DIFFUSERS].table.write(VOCODER)), 6)
    mel = normal(7, 2, 25, 64, 2)
    samples = jax.jit(Vocoder(VOCODER).apply)(
        to_ours(vocoder.COMPONENT, DIFFUSERS, VOCODER, dict(peer.named_parameters())), mel
    )
    with torch.no_grad():
        expected = peer(to_torch(mel)).numpy()
    np.testing.assert_allclose(samples, expected.swapaxes(1, 2), atol=1e-4, rtol=0)
    assert np.std(expected) > 0.05


def build_extended(naming):
    """The peer's vocoder of 2.3, from the config that we write."""
    values = vocoder.COMPONENT.namings[naming].table.write(EXTENDED)
    if naming == DIFFUSERS:
        return LTX2VocoderWithBWE.from_config(values).eval()
    return model_configurator.VocoderConfigurator.from_config(values).eval()


extended = jax.jit(Vocoder(EXTENDED).apply)


@pytest.mark.parametrize(("naming", "loudness"), [(DIFFUSERS, 1), (LTX2, 1), (LTX2, 20)])
def test_the_extended_vocoder_equals_the_peers_also_where_it_clips(naming, loudness, strict):
    variables = fill(vocoder.COMPONENT.abstract(EXTENDED))
    bases = {"forward_basis": jnp.asarray(fourier_basis(256)), "mel_basis": jnp.abs(jnp.asarray(normal(9, 64, 129)))}
    variables["constants"]["extension"]["mel"] = bases
    variables["params"]["conv_out"]["conv"]["kernel"] *= loudness
    peer, mel = build_extended(naming), normal(8, 2, 11, 64, 2)
    own = to_peer(vocoder.COMPONENT, naming, EXTENDED, variables)
    own = {name.removeprefix(vocoder.PREFIX) if naming == LTX2 else name: own[name] for name in own}
    peer.load_state_dict(own | {vocoder.UNUSED: peer.state_dict()[vocoder.UNUSED]}, strict=True)
    with torch.no_grad():
        low = peer.vocoder(to_torch(mel)).numpy()
        expected = peer(to_torch(mel)).numpy().swapaxes(1, 2)
    assert (np.abs(low).max() >= 1) == (loudness > 1)
    np.testing.assert_allclose(extended(variables, mel), expected, atol=1e-4, rtol=0)
    assert np.std(expected) > 0.05


def test_filters_that_we_make_are_the_peers():
    peer = build_extended(DIFFUSERS)
    for name in ("upsample", "downsample"):
        theirs = getattr(peer.vocoder.act_out, name).filter.numpy()
        np.testing.assert_allclose(low_pass().ravel(), theirs.ravel(), atol=1e-7, rtol=0)
    taps = resampling_taps(3)[::-1].ravel()
    np.testing.assert_allclose(taps[: 2 * 21 + 1] / 3, peer.resampler.filter.numpy().ravel(), atol=1e-7, rtol=0)
    np.testing.assert_allclose(taps[2 * 21 + 1 :], 0, atol=1e-30)


def test_the_filterbank_equals_transformers():
    expected = mel_filter_bank(513, 64, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filterbank(LTX2_MEL), expected.T, atol=1e-7, rtol=0)


def test_the_log_mel_equals_ltx_core(strict):
    t = np.arange(16000) / 16000
    waveform = np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0.1 * normal(8, 16000)], -1)[None].astype(np.float32)
    processor = ops.AudioProcessor(target_sample_rate=16000, mel_bins=64, mel_hop_length=160, n_fft=1024)
    expected = processor.waveform_to_mel(Audio(waveform=torch.from_numpy(waveform.swapaxes(1, 2)), sampling_rate=16000))
    mel = jax.jit(log_mel)(waveform)
    assert mel.shape == (1, 101, 64, 2)
    np.testing.assert_allclose(mel, np.moveaxis(expected.numpy(), 1, -1), atol=1e-2, rtol=0)
    loud = expected.numpy() > -7
    np.testing.assert_allclose(np.moveaxis(np.asarray(mel), -1, 1)[loud], expected.numpy()[loud], atol=1e-4, rtol=0)
