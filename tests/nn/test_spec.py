import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from omniforcing_jax.nn.linear import Linear, linear_spec
from omniforcing_jax.parallel.spec import Spec, abstract, count, init, path_name, shardings, stacked, zeros

TREE = {"a": linear_spec(8, 16, ("heads", "embed")), "b": stacked(linear_spec(4, 8, ("embed", None)), 3)}


def mesh(**axes):
    devices = np.array(jax.devices()[: int(np.prod(list(axes.values())))]).reshape(tuple(axes.values()))
    return jax.sharding.Mesh(devices, tuple(axes))


def test_values_shapes_and_declarations_agree():
    values, shapes = init(TREE, jax.random.key(0), jnp.bfloat16), abstract(TREE, jnp.bfloat16)
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values) == shapes
    assert values["b"].w.shape == (3, 8, 4)
    assert count(TREE) == count(values) == 8 * 16 + 16 + 3 * (4 * 8 + 8)


def test_a_value_depends_on_key_and_path_only():
    both, alone = init(TREE, jax.random.key(0)), init({"b": TREE["b"]}, jax.random.key(0))
    np.testing.assert_array_equal(both["b"].w, alone["b"].w)
    assert not np.array_equal(both["b"].w, init(TREE, jax.random.key(1))["b"].w)


def test_matrices_start_at_the_scale_of_their_inputs():
    w = init(linear_spec(400, 300), jax.random.key(0)).w
    assert abs(float(w.std()) * 20 - 1) < 0.02


def test_leaves_are_named_by_their_path():
    named = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(TREE)[0]}
    assert named == {"a/w", "a/b", "b/w", "b/b"}


def test_shardings_follow_the_rules_table():
    made = shardings(TREE, mesh(fsdp=2, tensor=4), {"embed": "fsdp", "heads": "tensor"})
    assert made["a"].w.spec == PartitionSpec("tensor", "fsdp")
    assert made["a"].b.spec == PartitionSpec("tensor")
    assert made["b"].w.spec == PartitionSpec(None, "fsdp", None)


def test_one_mesh_axis_cannot_serve_two_axes_of_a_weight():
    with pytest.raises(ValueError, match=r"a/w: .* one of them twice"):
        shardings({"a": TREE["a"]}, mesh(fsdp=2), {"embed": "fsdp", "heads": "fsdp"})


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"x: size 6 of .* does not divide"):
        shardings({"x": Spec((6,), ("embed",), zeros)}, mesh(fsdp=4), {"embed": "fsdp"})


def test_a_declaration_names_every_axis():
    with pytest.raises(ValueError, match="must name each axis"):
        Spec((2, 3), ("embed",), zeros)


def test_declarations_of_stacked_layers_keep_their_type():
    assert isinstance(TREE["b"], Linear)
    assert TREE["b"].w.axes == ("layers", "embed", None)
