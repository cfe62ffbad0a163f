"""The transformer under its original keys: total at full size, a bijection for every kind of network."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion import network_to_original, read_original, read_plan, to_native, to_source
from hypothesis import given, settings
from hypothesis import strategies as st
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection

from converters.component import LTX2
from converters.formats.transformer import COMPONENT, HEADER, PREFIX
from converters.original_keys import LANDMARK
from converters.plan import plan_component
from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.pipeline.presets import LTX2_19B, LTX2_22B, TINY


def original_shapes(config: ModelConfig) -> dict:
    return {p.source.removeprefix(PREFIX): p.source_shape for p in COMPONENT.expand(config, LTX2)}


def build_full_size(newer: bool) -> LTXModel:
    """ltx-core's own model at its full size, without memory."""
    video, audio = (LTX2_19B.video, LTX2_19B.audio)
    options = {"apply_gated_attention": True, "cross_attention_adaln": True}
    with torch.device("meta"):
        if not newer:
            options = {
                "caption_projection": PixArtAlphaTextProjection(LTX2_19B.caption_channels, video.width),
                "audio_caption_projection": PixArtAlphaTextProjection(LTX2_19B.caption_channels, audio.width),
            }
        return LTXModel(**options)


@pytest.mark.parametrize(("newer", "count"), [(False, 3510), (True, 4186)])
def test_at_full_size_every_key_and_shape_is_ltx_core_s(newer, count):
    theirs = {name: tuple(value.shape) for name, value in build_full_size(newer).state_dict().items()}
    assert len(theirs) == count
    assert original_shapes(LTX2_22B if newer else LTX2_19B) == theirs


def test_the_full_size_parameter_count_is_the_published_one():
    assert sum(np.prod(shape, dtype=np.int64) for shape in original_shapes(LTX2_19B).values()) == 18_876_174_592
    assert sum(np.prod(shape, dtype=np.int64) for shape in original_shapes(LTX2_22B).values()) == 18_988_838_144


@st.composite
def configs(draw):
    heads = draw(st.integers(1, 3))
    sizes, text_adaln = st.sampled_from([6, 8]), draw(st.booleans())

    def stream():
        channels, size, mlp_bias = draw(st.integers(1, 3)), draw(sizes), draw(st.booleans())
        return StreamConfig(latent_channels=channels, heads=heads, head_size=size, mlp_bias=mlp_bias)

    return ModelConfig(
        layers=draw(st.integers(1, 3)),
        video=stream(),
        audio=stream(),
        caption_channels=draw(st.none() | st.integers(1, 3)),
        gated_attention=draw(st.booleans()),
        text_adaln=text_adaln,
        prompt_time=not text_adaln or draw(st.booleans()),
        keyframe_embedding=draw(st.booleans()),
        sinks=draw(st.integers(0, 2)),
    )


def draw_tensors(config: ModelConfig, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in original_shapes(config).items()}


@settings(deadline=None, max_examples=15)
@given(
    config=configs(),
    seed=st.integers(0, 9),
    prefix=st.sampled_from(["", PREFIX, "model."]),
    order=st.randoms(use_true_random=False),
)
def test_there_and_back_is_bit_exact_for_every_network_and_its_sizes_are_read_off_the_shapes(
    config, seed, prefix, order
):
    tensors = draw_tensors(config, seed)
    items = [(prefix + name, value) for name, value in tensors.items()]
    order.shuffle(items)
    source = read_original(dict(items), config.video.heads)["transformer"]
    assumed = {name: getattr(source.config, name) for name in ("rotary", "cross_timestep", "gate_multiplier")}
    assert source.config == dataclasses.replace(config, **assumed)
    tree = to_native(COMPONENT, LTX2, source.config, {key: tensor.load() for key, tensor in source.tensors.items()})
    back = network_to_original(source.config, tree)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)


@settings(deadline=None, max_examples=10)
@given(config=configs(), seed=st.integers(0, 9))
def test_back_and_there_is_bit_exact_for_every_network(config, seed):
    tensors = {PREFIX + name: value for name, value in draw_tensors(config, seed).items()}
    tree = to_native(COMPONENT, LTX2, config, tensors)
    again = to_native(COMPONENT, LTX2, config, to_source(COMPONENT, LTX2, config, tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_bfloat16_goes_through_untouched():
    tensors = {PREFIX + name: value.astype(jnp.bfloat16) for name, value in draw_tensors(TINY, 0).items()}
    tree = to_native(COMPONENT, LTX2, TINY, tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.bfloat16)}


def plan_file(tensors, config=TINY):
    """Plan what a file with a header would be converted to."""
    source = read_original(tensors, config.video.heads, {"config": json.dumps(HEADER.write(config))})["transformer"]
    return plan_component(source)


def test_connectors_beside_a_network_are_a_component_of_their_own():
    tensors = {PREFIX + name: value for name, value in draw_tensors(TINY, 0).items()}
    beside = {f"{PREFIX}audio_embeddings_connector.a.b": np.ones(2, np.float32)}
    sources = read_original(tensors | beside, TINY.video.heads)
    assert sources["connectors"].tensors.keys() == beside.keys()
    assert read_plan(plan_component(sources["transformer"])).keys() == read_plan(plan_file(tensors)).keys()


@settings(deadline=None, max_examples=10)
@given(data=st.data(), published=st.booleans())
def test_any_key_that_is_gone_or_new_is_named(data, published):
    tensors = draw_tensors(TINY, 0)
    key = data.draw(st.sampled_from(sorted(set(tensors) - {LANDMARK})))  # which the prefix is told by
    gone = data.draw(st.booleans())
    value = tensors.pop(key) if gone else tensors[key]
    if not gone:
        tensors[f"{key}_scale"] = value
    with pytest.raises(ValueError, match=f"^file: {'missing' if gone else 'unknown'} {PREFIX}{key}"):
        plan_file({PREFIX * published + name: value for name, value in tensors.items()})


def test_a_key_that_is_given_with_and_without_the_prefix_is_named():
    tensors = draw_tensors(TINY, 0)
    with pytest.raises(ValueError, match=rf"^file: {PREFIX}proj_out\.bias is given twice, with and without a prefix"):
        plan_file(tensors | {f"{PREFIX}proj_out.bias": tensors["proj_out.bias"]})
    with pytest.raises(ValueError, match=r"^file: unknown proj_out\.bias, no component's key begins like this"):
        plan_file({PREFIX + name: value for name, value in tensors.items()} | {"proj_out.bias": np.zeros(8)})


def test_sinks_of_a_student_are_unknown_to_a_teacher():
    student = dataclasses.replace(TINY, sinks=2)
    with pytest.raises(ValueError, match=rf"^file: unknown {PREFIX}audio_sink_tokens$"):
        plan_file(draw_tensors(student, 0))
