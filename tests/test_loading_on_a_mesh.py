"""Loading onto a mesh: every device gets its slices, every byte is read once, one weight after the other."""

import itertools

import jax
import numpy as np
import pytest
import tiny

from omniforcing_jax import mesh as meshes
from omniforcing_jax import weights
from omniforcing_jax.mesh import MeshConfig, make_mesh
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.tensor_file import TensorFile


@pytest.fixture
def reads(monkeypatch):
    """Names and bytes of everything that is read of a tensor file."""
    log, read = [], TensorFile.read

    def counted(file, name, index=()):
        array = read(file, name, index)
        log.append((name, array.nbytes))
        return array

    monkeypatch.setattr(TensorFile, "read", counted)
    return log


@pytest.mark.parametrize(("text", "most"), [("2,2,2", 1 / 2), ("1,8,1", 1 / 8), ("8,1,1", 1)])
def test_a_network_is_loaded_onto_a_mesh_weight_by_weight_each_byte_once(tmp_path, reads, text, most):
    specs, params = transformer_spec(tiny.SINKS), tiny.random_params(tiny.SINKS)
    weights.save_component(tmp_path, "transformer", params, {})
    mesh = make_mesh(MeshConfig.parse(text))
    loaded = weights.load_component(tmp_path, "transformer", meshes.abstract(specs, mesh))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    wanted = meshes.param_shardings(specs, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == wanted
    sizes = {name: leaf.nbytes for name, leaf in weights.name_leaves(params).items()}
    assert [name for name, _ in itertools.groupby(reads, key=lambda read: read[0])] == list(
        sizes
    )  # one after the other
    for name, size in sizes.items():
        parts = [nbytes for read, nbytes in reads if read == name]
        assert sum(parts) == size, name  # by this process: once, for all of its devices
        assert max(parts) <= (most * size if name.endswith("/w") else size), name
