"""The transformer under its original names: total at full size, a bijection for every kind of network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection

from converters.ltx2_transformer import PREFIX, from_original, place_tensors, to_original
from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.pipeline.presets import LTX2_19B, TINY

LTX2_22B = dataclasses.replace(LTX2_19B, caption_channels=None, gated_attention=True, text_adaln=True)


def shapes_of(config: ModelConfig):
    return abstract(transformer_spec(config))


def original_shapes(config: ModelConfig) -> dict:
    return {placement.theirs: placement.shape for placement in place_tensors(shapes_of(config))}


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
    sizes = st.sampled_from([6, 8])
    return ModelConfig(
        layers=draw(st.integers(1, 3)),
        video=StreamConfig(latent_channels=draw(st.integers(1, 3)), heads=heads, head_size=draw(sizes)),
        audio=StreamConfig(latent_channels=draw(st.integers(1, 3)), heads=heads, head_size=draw(sizes)),
        caption_channels=draw(st.none() | st.integers(1, 3)),
        gated_attention=draw(st.booleans()),
        text_adaln=draw(st.booleans()),
        sinks=draw(st.integers(0, 2)),
    )


def draw_tensors(config: ModelConfig, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in original_shapes(config).items()}


@settings(deadline=None, max_examples=15)
@given(config=configs(), seed=st.integers(0, 9), published=st.booleans(), order=st.randoms(use_true_random=False))
def test_there_and_back_is_bit_exact_for_every_network(config, seed, published, order):
    tensors = draw_tensors(config, seed) | {"audio_embeddings_connector.a.b": np.ones(2, np.float32)}
    items = [(PREFIX * published + name, value) for name, value in tensors.items()]
    order.shuffle(items)
    back = to_original(from_original(dict(items), shapes_of(config)))
    assert back.keys() == dict(items).keys()
    for name, value in items:
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)


@settings(deadline=None, max_examples=10)
@given(config=configs(), seed=st.integers(0, 9))
def test_back_and_there_is_bit_exact_for_every_network(config, seed):
    checkpoint = from_original(draw_tensors(config, seed), shapes_of(config))
    again = from_original(to_original(checkpoint), shapes_of(config))
    assert jax.tree.structure(again.params) == jax.tree.structure(checkpoint.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)


def test_bfloat16_goes_through_untouched():
    tensors = {name: value.astype(jnp.bfloat16) for name, value in draw_tensors(TINY, 0).items()}
    checkpoint = from_original(tensors, shapes_of(TINY))
    assert {leaf.dtype for leaf in name_leaves(checkpoint.params).values()} == {jnp.dtype(jnp.bfloat16)}


@settings(deadline=None, max_examples=10)
@given(data=st.data(), published=st.booleans())
def test_any_key_that_is_gone_or_new_is_named(data, published):
    tensors = draw_tensors(TINY, 0)
    key = data.draw(st.sampled_from(sorted(tensors)))
    gone = data.draw(st.booleans())
    value = tensors.pop(key) if gone else tensors[key]
    if not gone:
        tensors[f"{key}_scale"] = value
    named = {PREFIX * published + name: value for name, value in tensors.items()}
    with pytest.raises(ValueError, match=f"^file: {'missing' if gone else 'unknown'} {key}"):
        from_original(named, shapes_of(TINY), where="file")


def test_a_key_that_is_given_with_and_without_the_prefix_is_named():
    tensors = {PREFIX + name: value for name, value in draw_tensors(TINY, 0).items()}
    tensors["proj_out.bias"] = tensors[PREFIX + "proj_out.bias"]
    with pytest.raises(ValueError, match=r"^file: proj_out\.bias is given twice, with and without model\."):
        from_original(tensors, shapes_of(TINY), where="file")


def test_another_component_s_key_among_prefixed_ones_is_named():
    tensors = {PREFIX + name: value for name, value in draw_tensors(TINY, 0).items()}
    tensors["vae.decoder.conv_in.conv.bias"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"^file: unknown vae\.decoder\.conv_in\.conv\.bias, which lacks the prefix"):
        from_original(tensors, shapes_of(TINY), where="file")


def test_sinks_of_a_student_are_unknown_to_a_teacher():
    student = dataclasses.replace(TINY, sinks=2)
    with pytest.raises(ValueError, match=r"^file: unknown audio_sink_tokens$"):
        from_original(draw_tensors(student, 0), shapes_of(TINY), where="file")
