"""Golden weights go through `convert` and `export`: total, strict, and bit-exact there and back."""

import dataclasses

import numpy as np
import pytest
from conversion import read_original
from golden_case import FOLDER, needs_golden, read_json
from golden_network import make_config
from safetensors.numpy import load_file, save_file

from converters.cli import main
from converters.formats.transformer import PREFIX
from converters.plan import plan_component
from omniforcing_jax.io.tensor_file import open_tensors

pytestmark = needs_golden
FILES = [name for name in read_json("index").get("cases", {}) if name.startswith("weights_")]


def read_weights(name: str):
    """Read golden tensors, and the config of their network."""
    return load_file(FOLDER / f"{name}.safetensors"), make_config(name, "interleaved", "float32", 1.0)


def run(*words) -> None:
    assert main([str(word) for word in words]) == 0


def assert_same(there: dict, back: dict) -> None:
    assert there.keys() == back.keys()
    for key, value in there.items():
        assert value.dtype == back[key].dtype
        np.testing.assert_array_equal(value, back[key])


@pytest.mark.parametrize("name", FILES)
def test_weights_go_there_and_back_bit_exact(name, tmp_path, capsys):
    tensors, config = read_weights(name)
    assert tensors.keys() == read_json(name)["tensors"].keys()
    beside = {f"{PREFIX}video_embeddings_connector.learnable_registers": np.ones((2, 3), np.float16)}
    published = {PREFIX + key: value for key, value in tensors.items()}
    save_file(published | beside, tmp_path / "published.safetensors")
    sources = {"bare": FOLDER / f"{name}.safetensors", "published": tmp_path / "published.safetensors"}
    for kind, expected in (("bare", published), ("published", published | beside)):
        weights, back = tmp_path / kind, tmp_path / f"{kind}_back.safetensors"
        flags = ("--release", "omniforcing", "--heads", config.video.heads)
        run("convert", "--from", sources[kind], *flags, "--out", weights)
        run("export", "--from", weights, "--to", "omniforcing", "--out", back)
        assert_same(expected, load_file(back))
    capsys.readouterr()


@pytest.mark.parametrize("name", FILES)
def test_the_network_is_read_off_its_shapes(name):
    tensors, config = read_weights(name)
    assert read_original(tensors, config.video.heads)["transformer"].config == config


@pytest.mark.parametrize("name", FILES)
def test_a_config_that_contradicts_the_weights_is_refused_by_key(name):
    tensors, config = read_weights(name)
    source = read_original(tensors, config.video.heads)["transformer"]
    wrong = dataclasses.replace(config, layers=config.layers + 1)
    with pytest.raises(ValueError, match=rf"missing {PREFIX}transformer_blocks\.{config.layers}\."):
        plan_component(dataclasses.replace(source, config=wrong))


@pytest.mark.parametrize("name", FILES)
def test_a_layer_of_ours_is_their_matrix_row_by_row(name, tmp_path, capsys):
    tensors, config = read_weights(name)
    source = FOLDER / f"{name}.safetensors"
    flags = ("--release", "omniforcing", "--heads", config.video.heads)
    run("convert", "--from", source, *flags, "--out", tmp_path / "ours")
    ours = open_tensors(tmp_path / "ours/transformer/model.safetensors").read("layers/a2v/q/w")
    for i, matrix in enumerate(ours):
        np.testing.assert_array_equal(matrix, tensors[f"transformer_blocks.{i}.audio_to_video_attn.to_q.weight"])
    capsys.readouterr()
