"""LTX-2.5's transformer against diffusers: no bias in video's feed-forward, marked keyframes, two kinds of text keys.

Weights go through the converter, and every one of them is random.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ltx2_peers as peers
import numpy as np
import pytest
from conversion import to_native
from diffusers import LTX2VideoTransformer3DModel
from test_transformer_parity import OWN_TABLES, PEER_TABLES, make_inputs, own_tables, peer_tables, run_predict, run_text

from converters.component import DIFFUSERS
from converters.formats.transformer import COMPONENT
from omniforcing_jax.config import CrossTimestep
from omniforcing_jax.model.view import Sigmas, bidirectional
from omniforcing_jax.pipeline.presets import LTX25_22B, TINY
from omniforcing_jax.streams import Streams

pytestmark = pytest.mark.usefixtures("strict")
FLAGS = ("caption_channels", "gated_attention", "text_adaln", "keyframe_embedding", "cross_timestep")
CONFIG = dataclasses.replace(
    TINY,
    video=dataclasses.replace(TINY.video, mlp_bias=False),
    **{name: getattr(LTX25_22B, name) for name in FLAGS},
)
KINDS = {"text keys of a noise level": CONFIG, "once per prompt": dataclasses.replace(CONFIG, prompt_time=False)}


@functools.cache
def diffusers(config):
    """Diffusers' model of the config that we write, every weight random."""
    model = LTX2VideoTransformer3DModel.from_config(COMPONENT.namings[DIFFUSERS].table.write(config)).eval()
    model.load_state_dict(peers.fill(model.state_dict(), small=False))
    return model


def run(config, inputs, tables):
    params = jax.tree.map(jnp.asarray, to_native(COMPONENT, DIFFUSERS, config, peers.get_weights(diffusers(config))))
    sigma_v, sigma_a = jnp.asarray(inputs.sigma_v), jnp.asarray(inputs.sigma_a)
    mask = jnp.asarray(inputs.text_mask, jnp.int32)
    texts = [
        run_text(params, inputs.context_v, inputs.context_a, mask, sigma=sigma if config.prompt_time else None)
        for sigma in (sigma_v, sigma_a)
    ]
    text = texts[0].replace(kv=Streams(texts[0].kv.video, texts[1].kv.audio))
    sigmas = Sigmas(jnp.asarray(inputs.token_sigma_v), jnp.asarray(inputs.token_sigma_a), sigma_v, sigma_a)
    tables = tables.replace(keyframes=jnp.asarray(inputs.keyframes))
    view = bidirectional(config, tables, sigmas)
    # Only text keys need the embedding of a noise level: without it, both kinds are one compiled program.
    params = params.replace(**{s: getattr(params, s).replace(prompt_time=None) for s in Streams._fields})
    return run_predict(params, CONFIG, Streams(inputs.video, inputs.audio), view, text).velocity


@pytest.mark.parametrize("name", KINDS)
def test_velocities_are_diffusers_with_marked_keyframes(name):
    config, frame = KINDS[name], peers.GRID[1] * peers.GRID[2]
    marked = (np.arange(peers.TOKENS) // frame != 1).astype(np.float32)  # the first latent frame and one more
    inputs = dataclasses.replace(make_inputs(True, "plain"), keyframes=marked)
    theirs = peers.run_diffusers(diffusers(config), inputs, config.cross_timestep is CrossTimestep.CROSS)
    for tables, limit in ((peer_tables("split"), PEER_TABLES), (own_tables(config), OWN_TABLES)):
        ours = run(config, inputs, tables)
        np.testing.assert_allclose(ours.video, theirs[0], atol=limit, rtol=0)
        np.testing.assert_allclose(ours.audio, theirs[1], atol=limit, rtol=0)
    without = peers.run_diffusers(diffusers(config), dataclasses.replace(inputs, keyframes=None), cross=True)
    assert np.abs(without[0] - theirs[0]).max() > 0.1


def test_only_the_first_latent_frame_of_a_clip_is_marked_and_only_where_the_network_has_the_embedding():
    frame = peers.GRID[1] * peers.GRID[2]
    np.testing.assert_array_equal(own_tables(CONFIG).keyframes, np.arange(peers.TOKENS) < frame)
    assert own_tables(TINY).keyframes is None
