"""Meshes as values, and what lies where on them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec

from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.nn.linear import linear_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh
from omniforcing_jax.parallel.sharding import constrain, gather
from omniforcing_jax.parallel.spec import Spec, path_name, zeros
from omniforcing_jax.parallel.spec import init as init_on_one
from omniforcing_jax.train import state

NETWORK = transformer_spec(tiny.SINKS)
SPECS = {"up": linear_spec(8, 16, ("mlp", "embed")), "down": linear_spec(16, 8, ("embed", "mlp"))}


@pytest.fixture(scope="module")
def cube():
    return make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))


def test_a_mesh_is_read_and_written_as_three_numbers():
    config = MeshConfig.parse("2,4,1")
    assert (config, str(config)) == (MeshConfig(replica=2, fsdp=4), "2,4,1")
    assert (config.devices, config.rows) == (8, 8)
    for text in ("2,4", "a,1,1", "1,1,-1", ""):
        with pytest.raises(ValueError, match=re.escape(f"--mesh {text}: must be three numbers")):
            MeshConfig.parse(text)
    with pytest.raises(ValueError, match="tensor=0: must be at least 1"):
        MeshConfig.parse("1,1,0")


def test_what_does_not_fit_a_mesh_is_named():
    with pytest.raises(ValueError, match="--mesh 1,3,1: needs 3 devices, there are 8"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ValueError, match="--batch 3: the mesh 2,2,2 takes multiples of 4, such as 4"):
        MeshConfig(replica=2, fsdp=2, tensor=2).check_batch(3)
    with pytest.raises(ValueError, match="--mesh 1,1,8: tensor=8 does not divide video's heads, 4"):
        MeshConfig(tensor=8).check_network(tiny.TINY)
    MeshConfig(fsdp=2, tensor=4).check_network(tiny.TINY)


def test_a_weight_is_not_cut_twice_by_one_axis_nor_into_unequal_parts(cube):
    with pytest.raises(ValueError, match=r"w: .* one of them twice"):
        meshes.param_shardings({"w": Spec((8, 8), ("heads", "mlp"), zeros)}, cube)
    with pytest.raises(ValueError, match=r"w: size 7 of .* does not divide"):
        meshes.param_shardings({"w": Spec((7,), ("embed",), zeros)}, cube)


def test_no_matrix_of_the_network_is_whole_anywhere(cube):
    for path, place in jax.tree_util.tree_flatten_with_path(meshes.param_shardings(NETWORK, cube))[0]:
        name = path_name(path)
        if name.endswith("/w"):
            both = name.startswith("layers") or "caption" in name
            cut = {axis for axes in place.spec if axes for axis in ((axes,) if isinstance(axes, str) else axes)}
            assert cut == ({"fsdp", "tensor"} if both else {"fsdp"}), name


def test_initial_values_are_the_same_on_every_mesh(cube):
    made, alone = meshes.init(SPECS, jax.random.key(0), cube), init_on_one(SPECS, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), made, alone)
    assert {leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(made)} == {2, 4}


def test_a_trainers_state_lies_as_its_weights_do(cube):
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    wanted = meshes.param_shardings(SPECS, cube)
    networks = [jax.device_put(init_on_one(SPECS, jax.random.key(i)), wanted) for i in range(2)]
    made = meshes.make_beside(lambda g, c: state.create_pair(g, c, (rule, rule), 0), *networks, specs=SPECS, mesh=cube)
    for one in (made.generator, made.critic):
        moments = one.opt_state[1][0]
        for tree in (one.params, moments.mu, moments.nu, *([one.ema] if one.ema is not None else [])):
            same = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), tree, wanted)
            assert all(jax.tree.leaves(same))
        assert moments.count.sharding.is_fully_replicated
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(networks))
    abstract = meshes.abstract_beside(made, SPECS, cube)
    assert jax.tree.map(lambda x: x.sharding, abstract) == jax.tree.map(lambda x: x.sharding, made)


def test_rows_of_a_batch_keep_their_order_and_are_sharded_by_replica_and_fsdp(cube):
    rows = {"x": np.arange(24, dtype=np.float32).reshape(8, 3)}
    assert meshes.rows_here(8, cube) == (0, 8)
    placed = meshes.place_batch(rows, 8, cube)["x"]
    np.testing.assert_array_equal(placed, rows["x"])
    assert placed.sharding.spec == PartitionSpec(("replica", "fsdp"))
    assert meshes.place_batch(rows, 8, None) is rows


def test_weights_are_gathered_over_fsdp_and_their_gradients_return(cube):
    spec = {"w": Spec((4, 6), ("heads", "embed"), zeros), "table": Spec((2, 6), (None, None), zeros)}
    weights = jax.tree.map(lambda s: jnp.ones(s.shape), spec)
    weights = jax.device_put(weights, meshes.param_shardings(spec, cube))
    seen = {}

    def loss(weights, x):
        whole = gather(weights, spec, jnp.bfloat16)
        jax.debug.inspect_array_sharding(whole["w"], callback=lambda place: seen.update(w=place))
        assert (whole["w"].dtype, whole["table"].dtype) == (jnp.bfloat16, jnp.float32)
        return jnp.sum(constrain(x @ whole["w"].astype(jnp.float32).T, "batch", "heads") ** 2)

    with jax.set_mesh(cube):
        gradient = jax.jit(jax.grad(loss))(weights, jnp.ones((4, 6)))["w"]
    assert seen["w"].is_equivalent_to(jax.NamedSharding(cube, PartitionSpec("tensor")), 2)
    assert gradient.sharding.is_equivalent_to(weights["w"].sharding, 2)
    np.testing.assert_array_equal(gradient, np.full((4, 6), 48.0))


def test_without_a_mesh_nothing_is_constrained():
    x = {"w": jnp.ones((4, 6))}
    assert constrain(x["w"], "batch", None) is x["w"]
    assert gather(x, {"w": Spec((4, 6), ("heads", "embed"), zeros)}) is x


def test_a_batch_that_does_not_divide_is_left_whole(cube):
    with jax.set_mesh(cube):
        placed = jax.jit(lambda x: constrain(x, "batch", "heads"))(jnp.ones((3, 4)))
    assert placed.sharding.is_equivalent_to(jax.NamedSharding(cube, PartitionSpec(None, "tensor")), 2)


def test_the_config_of_a_mesh_is_the_one_it_was_made_of(cube):
    assert meshes.config_of(cube) == dataclasses.replace(MeshConfig(), replica=2, fsdp=2, tensor=2)
