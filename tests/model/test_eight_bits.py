import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omniforcing_jax.config import EightBitKind, EightBits, ModelConfig
from omniforcing_jax.model.eight_bits import DEFAULT_PARTS, default_eight_bits, in_eight_bits
from omniforcing_jax.model.levels import make_levels
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import list_layers, predict, stack_layers, transformer_spec
from omniforcing_jax.model.view import bidirectional, one_sigma
from omniforcing_jax.nn import quantised
from omniforcing_jax.nn.quantised import is_quantised
from omniforcing_jax.nn.stack import is_mixed, stretches, take_layer
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel import spec
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.presets import LTX2_19B
from tests.eight_bits import choose, quantise_network, widen_network
from tests.tiny import GRID, MODERN, SINKS, random_latents, random_params, random_text

FRAMES, AUDIO = 2, 9
SIGMA = jnp.array([0.3, 0.8])
DEEP = dataclasses.replace(SINKS, layers=3)
NARROW = (1, 2)  # layers in eight bits; 0 stays wide


@cache
def wide(config: ModelConfig):
    return random_params(config)


def run(config, params, latents):
    text = random_text(config, params, sigma=SIGMA if config.text_adaln else None)
    turned = rotaries(config, make_positions(config, clip_block(FRAMES, AUDIO), GRID))
    view = bidirectional(config, turned, one_sigma(SIGMA))
    return jax.jit(partial(predict, config=config))(params, noisy=latents, view=view, text=text)


def test_ltx2_keeps_its_first_and_last_layers_wide_and_all_of_sound():
    chosen = default_eight_bits(48, EightBitKind.INT8)
    assert chosen.layers == tuple(range(1, 43))
    assert not [part for part in chosen.parts if part.startswith("audio")]
    assert default_eight_bits(6, EightBitKind.INT8).layers == (0, 1, 2, 3, 4)
    assert default_eight_bits(2, EightBitKind.INT8).layers == (0, 1)


def test_a_declaration_in_eight_bits_has_every_matrix_once():
    config = in_eight_bits(LTX2_19B, EightBitKind.FLOAT8)
    shapes = spec.abstract(transformer_spec(config), jnp.bfloat16)
    up = shapes.layers.video.mlp.up.w
    assert (up.narrow.values.shape, up.narrow.scale.shape, up.wide.shape) == (
        (42, 16384, 4096),
        (42, 16384),
        (6, 16384, 4096),
    )
    assert [str(leaf.dtype) for leaf in (up.narrow.values, up.narrow.scale, up.wide)] == [
        "float8_e4m3fn",
        "float32",
        "bfloat16",
    ]
    scales = sum(leaf.narrow.scale.size for leaf in jax.tree.leaves(shapes, is_leaf=is_mixed) if is_mixed(leaf))
    assert spec.count(shapes) - scales == spec.count(transformer_spec(LTX2_19B))
    assert shapes.layers.audio.mlp.up.w.dtype == shapes.video.patchify.w.dtype == jnp.bfloat16


def test_layers_are_cut_into_stretches_of_one_form():
    config = choose(DEEP, "int8", NARROW)
    mixed, plain = quantise_network(wide(DEEP), config.eight_bits), wide(DEEP)
    assert stretches(plain.layers) is None
    assert stretches(mixed.layers) == [range(1), range(1, 3)]
    assert stretches(quantise_network(plain, choose(DEEP, "int8", (1,)).eight_bits).layers) == [
        range(1),
        range(1, 2),
        range(2, 3),
    ]
    for i in range(DEEP.layers):
        found = take_layer(mixed.layers, i).video.mlp.up.w
        if i in NARROW:
            expected = plain.layers.video.mlp.up.w[i]
            np.testing.assert_allclose(
                found.values * found.scale[:, None], expected, atol=float(jnp.abs(expected).max() / 250)
            )
        else:
            np.testing.assert_array_equal(found, plain.layers.video.mlp.up.w[i])


def without_rounding(monkeypatch):
    """Multiply by the matrices that eight bits stand for, with activations as they are."""
    monkeypatch.setattr(
        quantised, "_multiply", lambda x, values, scale: x @ (values.astype(x.dtype) * scale[:, None]).T
    )


@pytest.mark.parametrize("listed", [False, True])
def test_the_modulation_of_mixed_layers_is_that_of_wide_ones(listed):
    mixed = quantise_network(wide(DEEP), choose(DEEP, "int8", NARROW).eight_bits)
    mixed = list_layers(mixed) if listed else mixed
    found, expected = (make_levels(params, DEEP, (0.5, 0.0)) for params in (mixed, wide(DEEP)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_list_of_mixed_layers_is_stacked_again_as_it_was():
    mixed = quantise_network(wide(DEEP), choose(DEEP, "int8", NARROW).eight_bits)
    listed = list_layers(mixed)
    assert [is_quantised(layer.video.self_attn.joined.w) for layer in listed.layers] == [False, True, True]
    again = stack_layers(listed)
    assert jax.tree.structure(again) == jax.tree.structure(mixed)
    jax.tree.map(np.testing.assert_array_equal, again, mixed)


def test_projections_that_are_not_of_one_kind_stay_apart():
    parts = ("video/self_attn/q", "video/self_attn/k")
    listed = list_layers(quantise_network(wide(SINKS), choose(SINKS, "int8", (0, 1), parts).eight_bits))
    attention = listed.layers[0].video.self_attn
    assert attention.joined is None
    assert is_quantised(attention.q.w)
    assert not is_quantised(attention.v.w)


@pytest.mark.parametrize(
    ("config", "kind"),
    [(DEEP, "int8"), pytest.param(dataclasses.replace(MODERN, layers=3), "float8", marks=pytest.mark.long)],
)
def test_each_layer_of_a_mixed_stack_is_multiplied_by_its_own_matrix(config, kind, monkeypatch):
    mixed = choose(config, kind, NARROW)
    params = quantise_network(wide(config), mixed.eight_bits)
    latents = random_latents(config, FRAMES, AUDIO)
    without_rounding(monkeypatch)
    found, expected = run(mixed, params, latents), run(config, widen_network(params), latents)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4), found, expected)


@pytest.mark.parametrize("kind", ["int8", pytest.param("float8", marks=pytest.mark.long)])
def test_a_network_in_eight_bits_predicts_nearly_what_it_was_made_from(kind):
    mixed, latents = choose(DEEP, kind, NARROW, DEFAULT_PARTS), random_latents(DEEP, FRAMES, AUDIO)
    found = run(mixed, quantise_network(wide(DEEP), mixed.eight_bits), latents).velocity
    expected = run(DEEP, wide(DEEP), latents).velocity
    for a, b in zip(found, expected, strict=True):
        assert 0 < jnp.linalg.norm(a - b) / jnp.linalg.norm(b) < (0.03 if kind == "int8" else 0.1)


@pytest.mark.long
def test_eight_bits_on_a_mesh_are_those_of_one_device(monkeypatch):
    config = choose(SINKS, "int8", (1,))
    params, latents = quantise_network(wide(SINKS), config.eight_bits), random_latents(SINKS, FRAMES, AUDIO)
    without_rounding(monkeypatch)  # a last bit of difference would round activations elsewhere
    alone = run(config, params, latents).velocity
    mesh = make_mesh(MeshConfig.parse("1,2,4"))
    put = jax.device_put(params, meshes.param_shardings(transformer_spec(config), mesh))
    up = put.layers.video.mlp.up.w.narrow
    assert up.values.addressable_shards[0].data.shape[1] == up.scale.addressable_shards[0].data.shape[1] == 64 * 4 // 8
    with jax.set_mesh(mesh):
        found = run(config, put, latents).velocity
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4), found, alone)


def test_a_gradient_of_a_network_in_eight_bits_is_refused():
    config = choose(SINKS, "int8", (0,))
    params, latents = quantise_network(wide(SINKS), config.eight_bits), random_latents(SINKS, FRAMES, AUDIO)
    with pytest.raises(ValueError, match="weights in eight bits have no gradient"):
        jax.grad(lambda x: run(config, params, latents._replace(video=x)).velocity.video.sum())(latents.video)


def test_a_choice_of_matrices_that_the_network_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match=r"eight_bits.parts='video/mlp/side': must be a matrix of a layer"):
        transformer_spec(choose(SINKS, "int8", (0,), ("video/mlp/side",)))
    with pytest.raises(ValueError, match=r"eight_bits.layers=\(0, 7\): must be below 2"):
        choose(SINKS, "int8", (0, 7))
    for layers in ((), (1, 0), (-1, 0)):
        with pytest.raises(ValueError, match="layers="):
            EightBits(kind=EightBitKind.INT8, layers=layers, parts=("video/mlp/up",))


def test_a_config_in_eight_bits_goes_through_json():
    config = in_eight_bits(SINKS, EightBitKind.INT8)
    assert ModelConfig.from_json(config.to_json()) == config
    assert in_eight_bits(config, EightBitKind.INT8) is config
    assert in_eight_bits(SINKS, None) is SINKS
    with pytest.raises(ValueError, match=r"weights_dtype='float8': cannot be had of weights that are in int8 already"):
        in_eight_bits(config, EightBitKind.FLOAT8)
