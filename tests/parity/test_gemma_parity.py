"""Gemma 3 against live transformers: all hidden states, with padding and a window that bites."""

import functools

import gemma_peers as peers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion import to_native
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from converters.formats.gemma import COMPONENT, TEXT_ONLY
from omniforcing_jax.text.gemma import GemmaConfig, embed, hidden_states

pytestmark = pytest.mark.usefixtures("strict")
CONFIG = GemmaConfig(
    vocabulary=peers.VOCABULARY,
    width=peers.WIDTH,
    mlp_width=40,
    heads=4,
    kv_heads=2,
    head_size=8,
    query_scale=12.0,
    window=peers.WINDOW,
    is_global=(False, True, False),
    local_theta=50.0,
    global_theta=500.0,
    global_stretch=8.0,
)
TOKENS = 9
IDS = np.random.default_rng(0).integers(1, peers.VOCABULARY, (2, TOKENS))
MASK = np.ones_like(IDS)
MASK[0, :3] = 0

run = jax.jit(hidden_states, static_argnums=(0, 4), compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def params():
    return jax.tree.map(jnp.asarray, to_native(COMPONENT, TEXT_ONLY, CONFIG, peers.get_weights()))


def states(ids, mask):
    return np.asarray(run(CONFIG, params(), jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32), jnp.float32))


def test_every_hidden_state_is_that_of_transformers():
    ours, theirs = states(IDS, MASK), peers.run_gemma(IDS, MASK)
    assert ours.shape == (peers.LAYERS + 1, 2, TOKENS, peers.WIDTH)
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours[:, MASK != 0], theirs[:, MASK != 0], atol=1e-4, rtol=1e-4)


def test_padding_on_the_left_does_not_change_tokens():
    alone = states(np.roll(IDS, -3, axis=1), np.roll(MASK, -3, axis=1))[:, 0, : TOKENS - 3]
    np.testing.assert_allclose(states(IDS, MASK)[:, 0, 3:], alone, atol=1e-4, rtol=1e-4)


def test_the_embedding_scale_is_rounded_to_the_type_of_the_computation():
    wide = jnp.float32(np.sqrt(peers.WIDTH))
    assert wide != wide.astype(jnp.bfloat16).astype(jnp.float32)
    small = params().replace(embedding=params().embedding.astype(jnp.bfloat16))
    layer = Gemma3TextScaledWordEmbedding(peers.VOCABULARY, peers.WIDTH, 0, embed_scale=peers.WIDTH**0.5)
    layer.load_state_dict({"weight": peers.build_gemma().embed_tokens.weight})
    theirs = layer.bfloat16()(torch.from_numpy(IDS)).float().detach().numpy()
    ours = embed(small, jnp.asarray(IDS, jnp.int32), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(ours.astype(jnp.float32)), theirs)
