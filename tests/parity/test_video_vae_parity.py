"""The video VAE against ltx-core and diffusers: tiny, random weights, both causal flags."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator

from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import ALL, SPACE, TIME, Block, BlockKind, VideoVAEConfig, compress, res
from omniforcing_jax.codecs.video_vae import VideoVAE


def plain(kind, multiplier):
    return Block(kind=kind, multiplier=multiplier)


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
    decoder = (one, plain(SPACE, 2), one, plain(TIME, 2), one, plain(ALL, 1), one, plain(ALL, 2), one)
    encoder = (one, compress(SPACE), one, compress(TIME), one, compress(ALL), one, compress(ALL, 1), one)
    return dataclasses.replace(
        config_20(1, causal),
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        decoder_padding=SpatialPadding.ZEROS,
    )


DIFFUSERS_20 = {
    "block_out_channels": (16, 32, 64, 128),
    "decoder_block_out_channels": (8, 16, 32),
    "upsample_type": ("spatiotemporal",) * 3,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2),
    "decoder_spatial_padding_mode": "reflect",
}
DIFFUSERS_23 = {
    "block_out_channels": (16, 32, 64, 64),
    "decoder_block_out_channels": (8, 16, 16, 32),
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "decoder_spatial_padding_mode": "zeros",
}
CASES = {
    "2.0": (config_20(1, causal=False), DIFFUSERS_20),
    "2.0 deeper": (config_20(2, causal=False), DIFFUSERS_20),
    "2.0 causal": (config_20(1, causal=True), DIFFUSERS_20),
    "2.3": (config_23(causal=False), DIFFUSERS_23),
    "2.3 causal": (config_23(causal=True), DIFFUSERS_23),
}


def original_name(path):
    """Spell a path of ours as LTX-2's checkpoint does: encoder/down_blocks_0/conv/kernel -> ...0.conv.conv.weight."""
    name = re.sub(r"_(\d+)", r".\1", "/".join(key.key for key in path)).replace("/", ".")
    return name.replace(".kernel", ".conv.weight").replace(".bias", ".conv.bias")


def diffusers_name(original, stages):
    """Spell an original name as diffusers does (specs/ltx2.md 9.2); `stages` resamplings in that half."""
    half, blocks, number, rest = re.fullmatch(r"(\w+)\.(?:(down_blocks|up_blocks)\.(\d+)\.)?(.*)", original).groups()
    rest = rest.replace("res_blocks", "resnets")
    if blocks is None:
        return f"{half}.{rest}"
    i, resampled = divmod(int(number), 2)
    if not resampled:
        if int(number) == (2 * stages if blocks == "down_blocks" else 0):
            return f"{half}.mid_block.{rest}"
        return f"{half}.{blocks}.{i - (blocks == 'up_blocks')}.{rest}"
    return f"{half}.{blocks}.{i}.{blocks.removesuffix('_blocks')}samplers.0.{rest}"


def random_variables(config):
    """Draw every weight, so that nothing is neutral."""
    pixels = jnp.zeros((1, 1, 64, 64, 3))
    leaves, tree = jax.tree.flatten(jax.eval_shape(VideoVAE(config).init, jax.random.key(0), pixels))
    generator = np.random.default_rng(0)
    drawn = [
        generator.uniform(0.3, 0.9, leaf.shape) if leaf.ndim == 1
        else generator.normal(size=leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5
        for leaf in leaves
    ]  # fmt: skip
    return jax.tree.unflatten(tree, [np.asarray(leaf, np.float32) for leaf in drawn])


def original_weights(variables):
    """Return the tensors under their names in a checkpoint, without its prefix `vae.`."""
    return {
        original_name(path): torch.tensor(leaf.transpose(4, 3, 0, 1, 2) if leaf.ndim == 5 else leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }


def header(config):
    """Return the config as the `vae` section of LTX-2's header."""

    def spell(block, suffix):
        if block.kind is BlockKind.RES:
            return [block.kind.value, {"num_layers": block.layers}]
        return [block.kind.value + suffix, {"multiplier": block.multiplier, "residual": block.residual}]

    return {
        "latent_channels": config.latent_channels,
        "decoder_base_channels": config.decoder_base_channels,
        "patch_size": config.patch_size,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "causal_decoder": config.causal_decoder,
        "timestep_conditioning": False,
        "encoder_blocks": [spell(block, "_res") for block in config.encoder_blocks],
        "decoder_blocks": [spell(block, "") for block in config.decoder_blocks],
    } | ({"spatial_padding_mode": "zeros"} if config.decoder_padding is SpatialPadding.ZEROS else {})


def ltx_core(config, variables):
    """Return the reference's encoder and decoder with these weights."""
    weights, halves = original_weights(variables), []
    for half, configurator in (("encoder", VideoEncoderConfigurator), ("decoder", VideoDecoderConfigurator)):
        module = configurator.from_config({"vae": header(config)})
        own = {name.removeprefix(f"{half}."): w for name, w in weights.items() if name.startswith(half)}
        own["per_channel_statistics.mean-of-means"] = torch.tensor(variables["stats"]["latents_mean"])
        own["per_channel_statistics.std-of-means"] = torch.tensor(variables["stats"]["latents_std"])
        module.load_state_dict(own, strict=True)
        halves.append(module.eval())
    return halves


def diffusers(config, arguments, variables):
    """Return diffusers' model with these weights."""
    layers = [
        tuple(block.layers for block in blocks if block.kind is BlockKind.RES)
        for blocks in (config.encoder_blocks, config.decoder_blocks)
    ]
    model = AutoencoderKLLTX2Video(
        latent_channels=8,
        layers_per_block=layers[0],
        decoder_layers_per_block=layers[1],
        encoder_causal=True,
        decoder_causal=config.causal_decoder,
        encoder_spatial_padding_mode="zeros",
        timestep_conditioning=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        **arguments,
    )
    stages = {"encoder": len(layers[0]) - 1, "decoder": len(layers[1]) - 1}
    weights = {diffusers_name(n, stages[n.split(".")[0]]): w for n, w in original_weights(variables).items()}
    weights |= {name: torch.tensor(value) for name, value in variables["stats"].items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def to_torch(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """One configuration: config, variables, both peers, and ours compiled."""
    config, arguments = CASES[request.param]
    variables, vae = random_variables(config), VideoVAE(config)
    run = jax.jit(lambda x, method: vae.apply(variables, x, method=method), static_argnums=1)
    return variables["stats"], ltx_core(config, variables), diffusers(config, arguments, variables), run


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
