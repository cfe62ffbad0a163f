"""The native weights folder: names, strictness, slices, half precision, damaged files."""

import json
import re

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omniforcing_jax.io import tensor_file
from omniforcing_jax.io.weights import (
    compare_shapes,
    load_component,
    name_leaves,
    read_config,
    save_component,
    write_config,
)


@flax.struct.dataclass
class Pair:
    w: jax.Array
    b: jax.Array | None


def make_tree(dtype=np.float32):
    """A dataclass inside Flax-like collections, an absent part, a scalar and an integer."""
    rng = np.random.default_rng(0)
    return {
        "params": {"conv": Pair(w=rng.normal(size=(3, 4, 5)).astype(dtype), b=None), "scale": np.array(1.5, dtype)},
        "stats": {"mean": rng.normal(size=(6,)).astype(dtype), "count": np.array([7, 8], np.int32)},
    }


def make_abstract(tree, dtype=None):
    def shape_of(leaf):
        own = leaf.dtype if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating) else dtype
        return jax.ShapeDtypeStruct(leaf.shape, own)

    return jax.tree.map(shape_of, tree)


@pytest.fixture
def saved(tmp_path):
    tree = make_tree()
    save_component(tmp_path, "part", tree, {"width": 5})
    return tmp_path, tree, tmp_path / "part" / "model.safetensors"


def test_leaves_are_named_by_fields_and_keys():
    assert list(name_leaves(make_tree())) == ["params/conv/w", "params/scale", "stats/count", "stats/mean"]


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'a/b' names two leaves"):
        name_leaves({"a/b": np.zeros(1), "a": {"b": np.zeros(1)}})


def test_a_saved_component_loads_bit_equal(saved):
    folder, tree, _ = saved
    loaded = load_component(folder, "part", make_abstract(tree))
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert read_config(folder, "part") == {"width": 5}


def test_the_safetensors_package_reads_our_files(saved):
    _, tree, path = saved
    found = safetensors.numpy.load_file(path)
    assert found.keys() == name_leaves(tree).keys()
    for name, leaf in name_leaves(tree).items():
        np.testing.assert_array_equal(found[name], leaf)


def test_we_read_files_of_the_safetensors_package(tmp_path):
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", metadata={"config": "{}"})
    file = tensor_file.open_tensors(tmp_path / "x.safetensors")
    assert dict(file.metadata) == {"config": "{}"}
    for name, value in tensors.items():
        np.testing.assert_array_equal(file.read(name), value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_on_disk_loads_as_float32(tmp_path, dtype):
    tree = make_tree()
    save_component(tmp_path, "part", tree, {}, dtype=dtype)
    stored = tensor_file.open_tensors(tmp_path / "part" / "model.safetensors")
    assert stored.entries["params/conv/w"].dtype == np.dtype(dtype)
    assert stored.entries["stats/count"].dtype == np.int32
    loaded = load_component(tmp_path, "part", make_abstract(tree))
    assert loaded["params"]["conv"].w.dtype == jnp.float32
    np.testing.assert_array_equal(loaded["stats"]["mean"], tree["stats"]["mean"].astype(dtype).astype(np.float32))


def test_float32_on_disk_loads_into_the_compute_dtype(saved):
    folder, tree, _ = saved
    loaded = load_component(folder, "part", make_abstract(tree, jnp.bfloat16))
    np.testing.assert_array_equal(loaded["params"]["conv"].w, tree["params"]["conv"].w.astype(jnp.bfloat16))
    assert loaded["stats"]["count"].dtype == jnp.int32


def test_a_value_too_large_for_the_dtype_on_disk_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'a' has values that do not fit into float16"):
        save_component(tmp_path, "part", {"a": np.array([1e6], np.float32)}, {}, dtype=np.float16)
    assert not (tmp_path / "part" / "model.safetensors").exists()


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a' is complex64, which safetensors cannot hold"):
        save_component(tmp_path, "part", {"a": np.zeros(1, np.complex64)}, {})


def test_saving_replaces_the_old_weights_and_leaves_no_temporary_file(saved):
    folder, tree, _ = saved
    doubled = jax.tree.map(lambda leaf: leaf * 2, tree)
    save_component(folder, "part", doubled, {"width": 6})
    jax.tree.map(np.testing.assert_array_equal, load_component(folder, "part", make_abstract(tree)), doubled)
    assert sorted(path.name for path in (folder / "part").iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_save_keeps_the_old_weights(saved):
    folder, tree, path = saved
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save_component(folder, "part", tree | {"wrong": np.zeros(1, np.complex64)}, {})
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.json", "model.safetensors"]


def test_every_wrong_key_is_named_in_one_line(saved):
    folder, tree, path = saved
    abstract = make_abstract(tree)
    abstract["params"]["new"] = abstract["params"].pop("scale")
    abstract["stats"]["mean"] = jax.ShapeDtypeStruct((7,), jnp.float32)
    with pytest.raises(ValueError) as error:
        load_component(folder, "part", abstract)
    expected = "missing params/new; unknown params/scale; mis-shaped stats/mean: (6,) instead of (7,)"
    assert str(error.value) == f"{path}: {expected}"


def test_many_wrong_keys_are_counted():
    with pytest.raises(ValueError, match=r"^here: missing a0, a1, a2, a3, a4 and 3 more$"):
        compare_shapes({}, {f"a{i}": () for i in range(8)}, "here")


def test_an_integer_where_a_float_belongs_is_named(saved):
    folder, tree, path = saved
    abstract = make_abstract(tree)
    abstract["stats"]["count"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: 'stats/count' is int32, expected float32$"):
        load_component(folder, "part", abstract)


def test_each_device_gets_just_its_slice(tmp_path, monkeypatch):
    wide = {"w": np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)}
    save_component(tmp_path, "wide", wide, {})
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b")), PartitionSpec("a", "b"))
    read_shapes = []
    read = tensor_file.TensorFile.read

    def spy(self, name, index=()):
        read_shapes.append(read(self, name, index).shape)
        return read(self, name, index)

    monkeypatch.setattr(tensor_file.TensorFile, "read", spy)
    abstract = {"w": jax.ShapeDtypeStruct((8, 6), jnp.bfloat16, sharding=sharding)}
    loaded = load_component(tmp_path, "wide", abstract)["w"]
    assert loaded.sharding == sharding
    assert set(read_shapes) == {(4, 3)}
    np.testing.assert_array_equal(loaded, wide["w"].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "index", [(), (slice(1, 3),), (slice(None), slice(2, 4)), (slice(None), slice(None), slice(1))]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_a_slice_read_equals_the_slice(tmp_path, index, dtype):
    tensors = {"odd": np.arange(3).astype(np.int8), "t": np.arange(60).reshape(3, 4, 5).astype(dtype)}
    layout = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    tensor_file.write_tensors(tmp_path / "x", layout, tensors.__getitem__)
    np.testing.assert_array_equal(tensor_file.open_tensors(tmp_path / "x").read("t", index), tensors["t"][index])


def test_values_of_another_type_of_the_same_width_are_not_written(tmp_path):
    layout = {"t": (np.dtype(np.int8), (3,))}
    with pytest.raises(ValueError, match="'t' got values in float8_e4m3fn, expected int8"):
        tensor_file.write_tensors(tmp_path / "x", layout, lambda name: np.ones(3, ml_dtypes.float8_e4m3fn))


def test_an_empty_tensor_is_kept(tmp_path):
    save_component(tmp_path, "part", {"none": np.zeros((0, 3), np.float32)}, {})
    abstract = {"none": jax.ShapeDtypeStruct((0, 3), jnp.float32)}
    assert load_component(tmp_path, "part", abstract)["none"].shape == (0, 3)


def test_a_missing_component_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"part/model\.safetensors: No such file or directory$"):
        load_component(tmp_path, "part", {})


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_found_before_any_tensor_is_read(saved, keep):
    folder, tree, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*cut off"):
        load_component(folder, "part", make_abstract(tree))


def with_header(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (b"{]", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        ({"a": {"dtype": "F32"}}, "'a' lacks"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "'a' has a shape"),
        ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}, "'a' has dtype F4"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, r"'a' of shape \(3,\) in F32 does not fill"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "'a' begins at byte 4"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "need 4 bytes, the file has 8"),
    ],
)
def test_a_damaged_header_is_described(tmp_path, header, fault):
    (tmp_path / "x").write_bytes(with_header(header))
    with pytest.raises(ValueError, match=f"/x: .*{fault}"):
        tensor_file.open_tensors(tmp_path / "x")


def test_the_top_level_config_keeps_its_sampler_section(tmp_path):
    values = {"components": ["transformer"], "sampler": {"sigmas": [1.0, 0.5, 0.0]}}
    write_config(tmp_path / "new", values)
    assert read_config(tmp_path / "new") == values


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_that_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: (not JSON: .* in line 1|must be a JSON object)$"):
        read_config(tmp_path)
