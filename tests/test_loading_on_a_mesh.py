"""Loading onto a mesh: every device gets its slices, every byte is read once, one weight is on the host at a time."""

import collections
import itertools
import weakref

import jax
import numpy as np
import pytest
import tiny

from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import TensorFile
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig, make_mesh


def unaligned(array):
    """Copy to where a CPU device, which shares the host's memory, cannot take the array as its own buffer."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + array.itemsize
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Reads(list):
    """Names and bytes of everything that is read of a tensor file.

    Attributes:
      here: bytes of each weight that are on the host.
      most: the most bytes that were there at once.
      crowds: sets of weights that were there at once.
    """

    def __init__(self):
        self.here, self.most, self.crowds = collections.Counter(), 0, set()

    def note(self, name, array):
        self.append((name, array.nbytes))
        self.here[name] += array.nbytes
        self.most = max(self.most, self.here.total())
        self.crowds.add(frozenset(+self.here))
        weakref.finalize(array, self.here.subtract, {name: array.nbytes})


@pytest.fixture
def reads(monkeypatch):
    log, read = Reads(), TensorFile.read

    def noted(file, name, index=()):
        array = unaligned(read(file, name, index))
        log.note(name, array)
        return array

    monkeypatch.setattr(TensorFile, "read", noted)
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
    in_turn = [name for name, _ in itertools.groupby(reads, key=lambda read: read[0])]
    assert in_turn == list(sizes)
    assert reads.crowds == {frozenset([name]) for name in sizes}
    assert reads.most == max(sizes.values())
    assert not +reads.here
    for name, size in sizes.items():
        parts = [nbytes for read, nbytes in reads if read == name]
        assert sum(parts) == size, name  # by this process: once, for all of its devices
        assert max(parts) <= (most * size if name.endswith("/w") else size), name
