"""Weights in eight bits from a folder to a stream: loaded, saved, resumed, on a mesh, refused."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_bits import quantise_network
from refusal import refusal
from tiny_stream import PROMPT, folders, student

from omniforcing_jax.cli.main import main
from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import TensorFile
from omniforcing_jax.model.transformer import list_layers, stack_layers, transformer_spec
from omniforcing_jax.nn.linear import project
from omniforcing_jax.nn.stack import is_mixed, take_layer
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.pipeline.pipeline import abstract_pipeline, with_weights_dtype
from omniforcing_jax.pipeline.presets import TINY_STREAM
from omniforcing_jax.pipeline.random_weights import random_pipeline
from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config, save_pipeline
from omniforcing_jax.stream.resume import resume
from omniforcing_jax.stream.saved import save
from omniforcing_jax.stream.start import open_stream

KINDS = pytest.mark.parametrize("kind", ["int8", "float8"])


def assert_equal(found, expected):
    """Compare networks as files have them."""
    found, expected = stack_layers(found), stack_layers(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@KINDS
def test_a_folder_is_quantised_while_it_is_loaded_and_stays_so_when_saved(tmp_path, kind):
    loaded = load_pipeline(folders() / "student", weights_dtype=kind)
    assert f"{kind} and float32" in repr(loaded)
    chosen = loaded.config.model.eight_bits
    assert_equal(
        loaded.transformer, quantise_network(jax.tree.map(np.asarray, stack_layers(student().transformer)), chosen)
    )
    save_pipeline(tmp_path / "ours", loaded)
    config = read_pipeline_config(tmp_path / "ours")
    assert config == loaded.config
    assert_equal(load_pipeline(tmp_path / "ours").transformer, loaded.transformer)
    other = "float8" if kind == "int8" else "int8"
    with pytest.raises(ValueError, match=f"weights_dtype='{other}': cannot be had of weights that are in {kind}"):
        load_pipeline(tmp_path / "ours", weights_dtype=other)
    with pytest.raises(ValueError, match=r"dtype=.*must be None for weights in eight bits"):
        save_pipeline(tmp_path / "half", loaded, dtype=jnp.float16)
    assert not (tmp_path / "half").exists()


def test_loading_in_eight_bits_reads_each_matrix_once(monkeypatch):
    read, reads = TensorFile.read, Counter()

    def count(file, name, index=()):
        reads[name, *(str(each) for each in index)] += 1
        return read(file, name, index)

    monkeypatch.setattr(TensorFile, "read", count)  # of files; a view of one has its own
    chosen = load_pipeline(folders() / "student", weights_dtype="int8").config.model.eight_bits
    for part in chosen.parts:
        rows = {key: number for key, number in reads.items() if key[0] == f"layers/{part}/w"}
        assert len(rows) == TINY_STREAM.model.layers
        assert set(rows.values()) == {1}


@KINDS
def test_a_list_of_layers_joins_eight_bits_and_stacks_them_again(kind):
    params = load_pipeline(folders() / "student", weights_dtype=kind).transformer
    listed = list_layers(params)
    assert_equal(listed, params)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 64)), jnp.float32)
    for i in range(2):
        own, joined = take_layer(params.layers, i).video.self_attn, listed.layers[i].video.self_attn.joined
        apart = jnp.concatenate([project(each, x) for each in (own.q, own.k, own.v)], axis=-1)
        np.testing.assert_array_equal(project(joined, x), apart)


@pytest.mark.long
def test_a_stream_of_a_list_of_layers_in_eight_bits_is_that_of_a_stack():
    stack = load_pipeline(folders() / "student", weights_dtype="int8")
    listed = dataclasses.replace(stack, transformer=list_layers(stack.transformer))
    found, expected = (
        np.concatenate([chunk.video for chunk in open_stream(each, PROMPT, 1, weights_dtype="int8")])
        for each in (listed, stack)
    )
    # A last bit may round an activation to the next of 255 values.
    assert np.mean(np.abs(found.astype(int) - expected)) < 1


def test_each_device_of_a_mesh_gets_its_slices_of_a_folder_that_is_quantised(tmp_path):
    loaded, mesh = load_pipeline(folders() / "student", weights_dtype="int8"), make_mesh(MeshConfig.parse("2,2,2"))
    with jax.set_mesh(mesh):
        cut = load_pipeline(folders() / "student", weights_dtype="int8")
    assert_equal(jax.device_get(cut.transformer), loaded.transformer)
    wanted = meshes.param_shardings(transformer_spec(loaded.config.model), mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, cut.transformer) == wanted


def test_float8_is_not_read_as_numbers_without_their_scale(tmp_path):
    weights.save_component(tmp_path, "part", {"w": jnp.ones((2, 2), jnp.float8_e4m3fn)}, {})
    with pytest.raises(ValueError, match="'w' is float8_e4m3fn, expected bfloat16"):
        weights.load_component(tmp_path, "part", {"w": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)})


def test_random_weights_are_drawn_in_eight_bits():
    config = with_weights_dtype(TINY_STREAM, "int8")
    drawn = stack_layers(random_pipeline(config, 0, jnp.bfloat16).transformer)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn)
    assert shapes == abstract_pipeline(config, jnp.bfloat16).transformer
    for leaf in (leaf for leaf in jax.tree.leaves(drawn, is_leaf=is_mixed) if is_mixed(leaf)):
        values, scale = np.asarray(leaf.narrow.values, np.float32), np.asarray(leaf.narrow.scale)[..., None]
        assert abs((values * scale).std() * np.sqrt(values.shape[-1]) - 1) < 0.05


@pytest.mark.long
def test_a_stream_in_eight_bits_goes_on_bit_for_bit_where_it_was_cut(tmp_path):
    folder = folders() / "student"
    whole = list(open_stream(folder, PROMPT, 3, weights_dtype="int8"))
    stream = open_stream(folder, PROMPT, weights_dtype="int8")
    first = [next(stream), next(stream)]
    save(stream, tmp_path / "state")
    rest = list(resume(tmp_path / "state", folder, 2))
    assert [len(chunk.video) for chunk in (*first, *rest)] == [len(chunk.video) for chunk in whole]
    for one, other in zip((*first, *rest), whole, strict=True):
        np.testing.assert_array_equal(one.video, other.video)
    wide = list(open_stream(folder, PROMPT, 1))
    assert not np.array_equal(wide[1].video, whole[1].video)


@pytest.mark.long
def test_the_command_streams_in_eight_bits_and_refuses_what_it_cannot(tmp_path, capsys):
    flags = ["--prompt", PROMPT, "--seconds", "1", "--out", str(tmp_path / "a.mp4")]
    assert main(["stream", *flags, "--weights", str(folders() / "student"), "--weights-dtype", "int8"]) == 0
    assert "25 frames" in capsys.readouterr().out
    assert "'int4'" in refusal(capsys, ["stream", *flags, "--weights-dtype", "int4"])
    with pytest.raises(ValueError, match="weights_dtype='int8': the weights are loaded already in another type"):
        open_stream(student(), PROMPT, 1, weights_dtype="int8")
    with pytest.raises(ValueError, match="weights_dtype='int4': must be one of"):
        open_stream(folders() / "student", PROMPT, 1, weights_dtype="int4")
