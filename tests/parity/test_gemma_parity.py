"""Gemma 3 and 4 against live transformers: all hidden states, with padding and a window that bites."""

import dataclasses
import functools

import gemma_peers as peers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion import to_native
from transformers import Gemma4UnifiedTextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedTextRotaryEmbedding

from converters.formats.gemma import COMPONENT, TEXT_ONLY
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.text.gemma import embed, gemma_spec, head_frequencies, hidden_states
from omniforcing_jax.text.gemma_config import GEMMA_4_12B, GemmaConfig, GlobalHeads

pytestmark = pytest.mark.usefixtures("strict")
SIZES = {
    "vocabulary": peers.VOCABULARY,
    "width": peers.WIDTH,
    "mlp_width": 40,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 8,
}
THETAS = {"window": peers.WINDOW, "local_theta": 50.0, "global_theta": 500.0}
GEMMA_3 = GemmaConfig(**SIZES, **THETAS, query_scale=12.0, is_global=(False, True, False), global_stretch=8.0)
GEMMA_4 = dataclasses.replace(
    GEMMA_4_12B,
    **SIZES,
    **THETAS,
    is_global=(False, True, False, False, True),
    global_rotated=0.5,
    global_heads=GlobalHeads(kv_heads=1, head_size=16, keys_are_values=True),
)
CONFIGS = {3: GEMMA_3, 4: GEMMA_4}
TOKENS = 9
IDS = np.random.default_rng(0).integers(1, peers.VOCABULARY, (2, TOKENS))
MASK = np.ones_like(IDS)
MASK[0, :3] = 0

run = jax.jit(hidden_states, static_argnums=(0, 4), compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def params(generation=3):
    tree = to_native(COMPONENT, TEXT_ONLY, CONFIGS[generation], peers.get_weights(generation))
    return jax.tree.map(jnp.asarray, tree)


def states(ids, mask, generation):
    ids, mask = (jnp.asarray(each, jnp.int32) for each in (ids, mask))
    return np.asarray(run(CONFIGS[generation], params(generation), ids, mask, jnp.float32))


@pytest.mark.parametrize("generation", [3, 4])
def test_every_hidden_state_is_that_of_transformers(generation):
    ours, theirs = states(IDS, MASK, generation), peers.run_gemma(IDS, MASK, generation)
    assert ours.shape == (CONFIGS[generation].states, 2, TOKENS, peers.WIDTH)
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours[:, MASK != 0], theirs[:, MASK != 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("generation", [3, 4])
def test_padding_on_the_left_does_not_change_tokens(generation):
    alone = states(np.roll(IDS, -3, axis=1), np.roll(MASK, -3, axis=1), generation)[:, 0, : TOKENS - 3]
    np.testing.assert_allclose(states(IDS, MASK, generation)[:, 0, 3:], alone, atol=1e-4, rtol=1e-4)


def test_frequencies_at_full_size_are_those_of_transformers():
    config = Gemma4UnifiedTextConfig(
        **COMPONENT.namings[TEXT_ONLY].table.write(GEMMA_4_12B), pad_token_id=0, attn_implementation="eager"
    )
    rotary = Gemma4UnifiedTextRotaryEmbedding(config)
    of = GEMMA_4_12B.of_global
    ours = {
        "sliding": head_frequencies(GEMMA_4_12B.head_size, GEMMA_4_12B.local_theta, 1.0),
        "full": head_frequencies(of.head_size, GEMMA_4_12B.global_theta, GEMMA_4_12B.global_rotated),
    }
    assert (ours["full"] > 0).sum() == 64
    for name, grid in ours.items():
        np.testing.assert_allclose(grid, getattr(rotary, f"{name}_attention_inv_freq").numpy(), rtol=1e-6)


def test_layers_of_two_kinds_are_read_in_place():
    """Each layer's weights are sliced out of its stack alone: no stack is copied."""
    wide = dataclasses.replace(GEMMA_4, width=192, mlp_width=1024)
    ids = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    compiled = run.lower(wide, abstract(gemma_spec(wide)), ids, ids, jnp.float32).compile()
    stacks = compiled.memory_analysis().argument_size_in_bytes
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * stacks


def test_the_embedding_scale_is_rounded_to_the_type_of_the_computation():
    wide = jnp.float32(np.sqrt(peers.WIDTH))
    assert wide != wide.astype(jnp.bfloat16).astype(jnp.float32)
    small = params().replace(embedding=params().embedding.astype(jnp.bfloat16))
    layer = Gemma3TextScaledWordEmbedding(peers.VOCABULARY, peers.WIDTH, 0, embed_scale=peers.WIDTH**0.5)
    layer.load_state_dict({"weight": peers.build_gemma().embed_tokens.weight})
    theirs = layer.bfloat16()(torch.from_numpy(IDS)).float().detach().numpy()
    ours = embed(small, jnp.asarray(IDS, jnp.int32), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(ours.astype(jnp.float32)), theirs)
