"""A profile can be read: the operations of lowered programs carry the names of the parts that they belong to."""

import re

import jax
import jax.numpy as jnp
import pytest
from tiny_stream import GRID, STATIC, keys, student, text

from omniforcing_jax import rollout as r
from omniforcing_jax.codecs import audio_vae, video_vae, vocoder

LAYER = {"video_self", "audio_self", "video_text", "audio_text", "a2v", "v2a", "video_mlp", "audio_mlp", "modulation"}
NETWORK = LAYER | {"dot_product_attention", "patchify", "time_embedding", "layers", "head"}


def scopes(lowered) -> set[str]:
    """The parts of the paths of all operations, without the operations themselves."""
    paths = re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True))
    return {scope for path in paths for scope in path.split("/")[:-1]}


def block(k=1):
    return r.block_positions(STATIC, k), jax.eval_shape(lambda: r.make_cache(STATIC, 1))


def test_a_denoise_step_names_every_part_of_the_network():
    positions, cache = block()
    lowered = r.denoise_block.lower(student().transformer, cache, text(), keys(1), positions, static=STATIC)
    assert scopes(lowered) >= NETWORK | {"denoise_step"}


def test_a_clean_pass_names_its_commit():
    positions, cache = block()
    arguments = student().transformer, cache, text(), keys(1)
    latents = jax.eval_shape(lambda: r.denoise_block(*arguments, positions, static=STATIC)[0])
    lowered = r.commit_block.lower(*arguments, latents, positions, static=STATIC)
    assert scopes(lowered) >= NETWORK - {"head"} | {"clean_pass", "commit"}


@pytest.mark.parametrize(
    ("codec", "shape", "stages"),
    [
        ("video", (1, 2, *GRID, student().config.video_vae.latent_channels), {"decoder", "conv_in", "up_blocks_1"}),
        ("audio", (1, 2, student().config.audio_vae.latent_size), {"decoder", "mid_block_1", "up_1_upsample"}),
        ("vocoder", (1, 8, student().config.vocoder.mel_bins, 2), {"up_0", "stage_0_block_0", "conv_out"}),
    ],
)
def test_a_codec_names_its_stages(codec, shape, stages):
    config, codecs = student().config, student().codecs
    run = {
        "video": lambda x: video_vae.decode_first(config.video_vae, codecs.video, x),
        "audio": lambda x: audio_vae.decode_block(config.audio_vae, codecs.audio, x, None),
        "vocoder": lambda x: vocoder.push(config.vocoder, codecs.vocoder, x, None),
    }[codec]
    assert scopes(jax.jit(run).lower(jnp.zeros(shape))) >= stages
