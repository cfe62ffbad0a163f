"""The video VAE against ltx-core and diffusers: tiny, random weights, both causal flags."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from codec_peers import to_peer
from diffusers import AutoencoderKLLTX2Video
from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator
from random_weights import fill_codec

from converters.component import DIFFUSERS, LTX2
from converters.formats.video_vae import COMPONENT
from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import ALL, SPACE, TIME, VideoVAEConfig, compress, expand, res
from omniforcing_jax.codecs.video_vae import VideoVAE


def config_20(layers, causal):
    """LTX-2 2.0 at widths 8 and 32, with its number of layers or fewer."""
    encoder = [block for kind in (SPACE, TIME, ALL, ALL) for block in (res(layers), compress(kind))]
    decoder = [block for kind in (ALL, ALL, ALL) for block in (res(layers), compress(kind))]
    return VideoVAEConfig(
        latent_channels=8,
        patch_size=4,
        encoder_base_channels=8,
        decoder_base_channels=4,
        encoder_blocks=(*encoder, res(layers)),
        decoder_blocks=(*decoder, res(layers)),
        causal_decoder=causal,
    )


def config_23(causal):
    """LTX-2.3's decoder: plain upsamplers of every kind, zeros outside."""
    one = res(1)
    decoder = (one, expand(SPACE, 2), one, expand(TIME, 2), one, expand(ALL, 1), one, expand(ALL, 2), one)
    encoder = (one, compress(SPACE), one, compress(TIME), one, compress(ALL), one, compress(ALL, 1), one)
    return dataclasses.replace(
        config_20(1, causal),
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        decoder_padding=SpatialPadding.ZEROS,
    )


CASES = {
    "2.0": config_20(1, causal=False),
    "2.0 deeper": config_20(2, causal=False),
    "2.0 causal": config_20(1, causal=True),
    "2.3": config_23(causal=False),
    "2.3 causal": config_23(causal=True),
}


def ltx_core(config, variables):
    """Return the reference's encoder and decoder with these weights."""
    header, halves = COMPONENT.namings[LTX2].table.write(config), []
    weights = to_peer(COMPONENT, LTX2, config, variables)
    for half, configurator in (("encoder", VideoEncoderConfigurator), ("decoder", VideoDecoderConfigurator)):
        module = configurator.from_config(header)
        own = {name.removeprefix(f"vae.{half}."): weights[name] for name in weights if half in name}
        own |= {name.removeprefix("vae."): weights[name] for name in weights if "statistics" in name}
        module.load_state_dict(own, strict=True)
        halves.append(module.eval())
    return halves


def diffusers(config, variables):
    """Return diffusers' model with these weights."""
    model = AutoencoderKLLTX2Video.from_config(COMPONENT.namings[DIFFUSERS].table.write(config))
    model.load_state_dict(to_peer(COMPONENT, DIFFUSERS, config, variables), strict=True)
    return model.eval()


def to_torch(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """One configuration: config, variables, both peers, and ours compiled."""
    config = CASES[request.param]
    vae = VideoVAE(config)
    variables = jax.tree.map(np.asarray, fill_codec(vae, jnp.zeros((1, 1, 64, 64, 3)), (0.3, 0.9)))
    run = jax.jit(lambda x, method: vae.apply(variables, x, method=method), static_argnums=1)
    return variables["stats"], ltx_core(config, variables), diffusers(config, variables), run


PIXELS = np.random.default_rng(1).uniform(-1, 1, (1, 17, 64, 96, 3)).astype(np.float32)
LATENTS = np.random.default_rng(2).normal(size=(1, 3, 2, 3, 8)).astype(np.float32)
LIMIT = {"rtol": 0, "atol": 1e-4}


@torch.no_grad()
def test_encoding_equals_the_peers(case):
    stats, (encoder, _), peer, run = case
    ours = run(PIXELS, "encode")
    np.testing.assert_allclose(ours, from_torch(encoder(to_torch(PIXELS))), **LIMIT)
    theirs = from_torch(peer.encode(to_torch(PIXELS)).latent_dist.mean)
    np.testing.assert_allclose(ours, (theirs - stats["latents_mean"]) / stats["latents_std"], **LIMIT)


@torch.no_grad()
def test_decoding_equals_the_peers(case):
    stats, (_, decoder), peer, run = case
    ours = run(LATENTS, "decode")
    np.testing.assert_allclose(ours, from_torch(decoder(to_torch(LATENTS))), **LIMIT)
    raw = LATENTS * stats["latents_std"] + stats["latents_mean"]
    np.testing.assert_allclose(ours, from_torch(peer.decode(to_torch(raw)).sample), **LIMIT)
