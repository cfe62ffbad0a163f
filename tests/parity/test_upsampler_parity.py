"""The latent upsamplers against ltx-core and diffusers: tiny, random weights, every kind of resampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from codec_peers import normal, randomise, to_ours, to_peer
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from ltx_core.model.upsampler import LatentUpsamplerConfigurator, upsample_video
from ltx_core.model.video_vae.ops import PerChannelStatistics

from converters.component import DIFFUSERS, UPSAMPLER
from converters.formats.upsampler import COMPONENTS, name_of
from omniforcing_jax.codecs.upsampler import LatentUpsampler, upsample_clip
from omniforcing_jax.codecs.upsampler_config import (
    LTX2_SPATIAL_UPSAMPLER,
    LTX23_SPATIAL_UPSAMPLER,
    LTX25_TEMPORAL_UPSAMPLER,
    Resampling,
    UpsamplerConfig,
)

PEERS = {UPSAMPLER: LatentUpsamplerConfigurator.from_config, DIFFUSERS: LTX2LatentUpsamplerModel.from_config}
KINDS = {
    "x2": (Resampling.SPACE, 2.0),
    "x2 rational": (Resampling.RATIONAL, 2.0),
    "x1.5 rational": (Resampling.RATIONAL, 1.5),
    "time": (Resampling.TIME, 1.0),
    "time and x2": (Resampling.ALL, 2.0),
}
FULL = {  # parameters, without the blur
    "2.0": (LTX2_SPATIAL_UPSAMPLER, 497_867_904),
    "2.3": (LTX23_SPATIAL_UPSAMPLER, 497_867_904),
    "2.5, time": (LTX25_TEMPORAL_UPSAMPLER, 130_968_192),
}


def component_of(config):
    return next(each for each in COMPONENTS if each.name == name_of(config))


@functools.cache
def tiny(kind):
    resampling, scale = KINDS[kind]
    return UpsamplerConfig(latent_channels=4, width=64, layers=1, resampling=resampling, scale=scale)


@functools.cache
def peer(kind, naming):
    """The peer's model, made from the config that we write."""
    config = tiny(kind)
    model = PEERS[naming](component_of(config).namings[naming].table.write(config))
    randomise(model, 0)
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.weight.data += 1
    return model


def variables_of(kind, naming):
    config = tiny(kind)
    return to_ours(component_of(config), naming, config, peer(kind, naming).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_upsampled_as_both_peers_do(kind, strict):
    latents, upsample = normal(1, 2, 4, 3, 4, 6), jax.jit(LatentUpsampler(tiny(kind)).apply)
    for naming in PEERS:
        with torch.no_grad():
            theirs = peer(kind, naming)(torch.tensor(latents)).numpy()
        ours = upsample(variables_of(kind, naming), jnp.asarray(np.moveaxis(latents, 1, -1)))
        np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, rtol=0, atol=1e-4)
        assert np.abs(theirs).mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_to_either_peer_and_back(kind):
    component, config = component_of(tiny(kind)), tiny(kind)
    variables = variables_of(kind, UPSAMPLER)
    for naming in PEERS:
        weights = to_peer(component, naming, config, variables)
        for name, value in peer(kind, UPSAMPLER).state_dict().items():
            assert torch.equal(weights[name], value), name
        peer(kind, naming).load_state_dict(weights, strict=True)


def test_normalised_latents_are_upsampled_as_ltx_core_does():
    latents, (mean, std) = normal(2, 1, 4, 2, 3, 2), (normal(3, 4), np.exp(normal(4, 4)))
    encoder = torch.nn.Module()
    encoder.per_channel_statistics = PerChannelStatistics(latent_channels=4)
    buffers = encoder.per_channel_statistics
    buffers.get_buffer("mean-of-means").data = torch.tensor(mean)
    buffers.get_buffer("std-of-means").data = torch.tensor(std)
    with torch.no_grad():
        theirs = upsample_video(torch.tensor(latents), encoder, peer("x2", UPSAMPLER)).numpy()
    vae = {"stats": {"latents_mean": jnp.asarray(mean), "latents_std": jnp.asarray(std)}}
    ours = upsample_clip(tiny("x2"), variables_of("x2", UPSAMPLER), vae, jnp.asarray(np.moveaxis(latents, 1, -1)))
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("naming", PEERS)
@pytest.mark.parametrize("case", FULL)
def test_at_full_size_the_peer_s_keys_and_shapes_are_ours(case, naming):
    config, count = FULL[case]
    component = component_of(config)
    with torch.device("meta"):
        model = PEERS[naming](component.namings[naming].table.write(config))
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {p.source: p.source_shape for p in component.expand(config, naming)} == theirs
    assert sum(parameter.numel() for parameter in model.parameters()) == count
