"""LoRAs beside the weights of a network: put into joined matrices, eight bits and lists of layers, and taken away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_bits import choose, quantise_network
from lora_files import fuse, write_lora
from tiny import MODERN, random_params

from converters.lora.beside import read_beside
from omniforcing_jax.model.lora import attach_loras, attach_shapes, detach_loras, join_factors, set_strengths
from omniforcing_jax.model.transformer import list_layers
from omniforcing_jax.nn.linear import Linear, project
from omniforcing_jax.nn.quantised import is_quantised
from omniforcing_jax.nn.stack import take_layer

STRENGTHS = (0.7, -0.4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    one = write_lora(folder / "one.safetensors", MODERN, seed=1)
    other = write_lora(
        folder / "other.safetensors", MODERN, seed=2, rank=1, modules=["transformer_blocks.1.attn1.to_k"]
    )
    return one, other


@pytest.fixture(scope="module")
def factors(files):
    return join_factors([read_beside(MODERN, file) for file in files])


def inputs(p: Linear):
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, p.shape[-1])), jnp.float32)


def products(p: Linear):
    """What a linear map, or one of each layer, makes of inputs."""
    return project(p, inputs(p))


def chosen(params, layer):
    """Linear maps of every kind: joined ones, changed in some parts or in none, others, one outside the layers."""
    p = params.layers[layer]
    joined = [p.video.self_attn.joined, p.video.text_attn.joined, p.audio.self_attn.joined, p.v2a.joined]
    return [*joined, p.a2v.q, p.video.mlp.up, p.audio.mlp.down, params.video.patchify]


def test_the_projections_of_a_list_of_layers_make_what_fused_ones_make(files, factors):
    base = random_params(MODERN)
    fused = list_layers(fuse(MODERN, base, *zip(files, STRENGTHS, strict=True)))
    ours = attach_loras(list_layers(base), factors, STRENGTHS, jnp.float32)
    for layer in range(MODERN.layers):
        for one, other in zip(chosen(ours, layer), chosen(fused, layer), strict=True):
            np.testing.assert_allclose(products(one), products(other), atol=1e-4)


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_a_network_of_shapes_gets_the_shapes_of_changes_without_their_values(factors):
    base = random_params(MODERN)
    listed = jax.eval_shape(lambda: list_layers(base))
    ours = attach_loras(list_layers(base), factors, STRENGTHS, jnp.bfloat16)
    assert attach_shapes(listed, factors, jnp.bfloat16) == shapes_of(ours)
    far = {name: np.broadcast_to(np.float32(0), (*f.down.shape[:-1], 10**12)) for name, f in factors.items()}
    wide = {name: dataclasses.replace(f, down=far[name]) for name, f in factors.items()}  # more than any memory holds
    joined = attach_shapes(listed, wide, jnp.float32).layers[0].video.self_attn.joined.w
    assert joined.down.shape == (3, 4, 10**12)


def test_strengths_are_replaced_and_changes_are_taken_away(factors):
    base = random_params(MODERN)
    ours = attach_loras(base, factors, STRENGTHS, jnp.float32)
    again = set_strengths(attach_loras(base, factors, (9.0, 9.0), jnp.float32), factors, STRENGTHS)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(again), strict=True))
    bare = detach_loras(ours)
    assert jax.tree.structure(bare) == jax.tree.structure(base)
    assert all(a is b for a, b in zip(jax.tree.leaves(bare), jax.tree.leaves(base), strict=True))


def test_a_matrix_in_eight_bits_keeps_its_bits_and_gets_the_change_in_full(factors):
    config, name = choose(MODERN, "int8", (1,)), "layers/video/self_attn/q/w"
    base = quantise_network(random_params(MODERN), config.eight_bits)
    ours = attach_loras(base, factors, STRENGTHS, jnp.float32)
    for layer in range(MODERN.layers):
        one, plain = (take_layer(p.layers, layer, layer).video.self_attn.q for p in (ours, base))
        assert is_quantised(plain.w) == (layer == 1)
        f = factors[name].row(layer)
        change = (f.up * f.scale * np.asarray(STRENGTHS, np.float32)[f.owner]) @ f.down
        x = inputs(one)
        np.testing.assert_allclose(project(one, x), project(plain, x) + x @ change.T, atol=1e-4)
