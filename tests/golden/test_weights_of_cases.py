"""Golden weights go through the real converter: total, strict, and bit-exact there and back."""

import dataclasses

import numpy as np
import pytest
from golden_case import FOLDER, needs_golden, read_json
from golden_network import make_config

from converters.ltx2_transformer import PREFIX, from_original, to_original
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel.spec import abstract

pytestmark = needs_golden
FILES = [name for name in read_json("index").get("cases", {}) if name.startswith("weights_")]


def read_weights(name: str):
    file = open_tensors(FOLDER / f"{name}.safetensors")
    config = make_config(name, "interleaved", "float32", 1.0)
    return {key: file.read(key) for key in file.entries}, abstract(transformer_spec(config))


def assert_same(there: dict, back: dict) -> None:
    assert there.keys() == back.keys()
    for key, value in there.items():
        assert value.dtype == back[key].dtype
        np.testing.assert_array_equal(value, back[key])


@pytest.mark.parametrize("name", FILES)
def test_weights_go_there_and_back_bit_exact(name):
    tensors, shapes = read_weights(name)
    assert tensors.keys() == read_json(name)["tensors"].keys()
    assert_same(tensors, to_original(from_original(tensors, shapes)))


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_keeps_its_prefix_and_its_connectors(name):
    tensors, shapes = read_weights(name)
    tensors |= {"video_embeddings_connector.learnable_registers": np.ones((2, 3), np.float16)}
    published = {PREFIX + key: value for key, value in tensors.items()}
    assert_same(published, to_original(from_original(published, shapes)))


@pytest.mark.parametrize("name", FILES)
def test_a_config_that_contradicts_the_weights_is_refused_by_key(name):
    tensors, _ = read_weights(name)
    config = make_config(name, "interleaved", "float32", 1.0)
    wrong = dataclasses.replace(config, layers=config.layers + 1)
    with pytest.raises(ValueError, match=rf"missing transformer_blocks\.{config.layers}\."):
        from_original(tensors, abstract(transformer_spec(wrong)))


@pytest.mark.parametrize("name", FILES)
def test_a_layer_of_ours_is_their_matrix_row_by_row(name):
    tensors, shapes = read_weights(name)
    ours = name_leaves(from_original(tensors, shapes).params)
    for i, matrix in enumerate(ours["layers/a2v/q/w"]):
        np.testing.assert_array_equal(matrix, tensors[f"transformer_blocks.{i}.audio_to_video_attn.to_q.weight"])
