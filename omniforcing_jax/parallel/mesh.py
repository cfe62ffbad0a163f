"""A mesh of devices as a value, and how networks, trainers' states and batches are put on it.

    with use(MeshConfig(fsdp=8)) as mesh:   # or --mesh 1,8,1 of a command
        params = init(transformer_spec(model), key, mesh)

Shardings of weights follow from their declarations by the table in parallel/sharding.py. Trees with a leaf for each
weight (moments, averages, gradients) are sharded as the weights are. Everything else is replicated. With None instead
of a mesh, functions work on one device and leave arrays where they are.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import DTypeLike, PyTree

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.parallel import spec
from omniforcing_jax.parallel.sharding import AT_REST, AXES, BATCH, mesh_in_use


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each axis has.

    Attributes:
        replica: Whole copies of all weights, each with its own rows of a batch.
        fsdp: Shards of the weights, each with its own rows of a batch.
        tensor: Shards of heads and mlp columns, which share their rows.
    """

    replica: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        """Check ranges."""
        for name in AXES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    @classmethod
    def parse(cls, text: str) -> "MeshConfig":
        """Read `R,F,T`.

        Raises:
            ValueError: The text is not three positive numbers.
        """
        numbers = text.split(",")
        if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
            raise ValueError(f"--mesh {text}: must be three numbers, replica,fsdp,tensor, such as 1,8,1")
        replica, fsdp, tensor = map(int, numbers)
        return cls(replica=replica, fsdp=fsdp, tensor=tensor)

    def __str__(self) -> str:
        """Write the text that `parse` reads."""
        return ",".join(map(str, self.sizes))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Devices along replica, fsdp, tensor."""
        return self.replica, self.fsdp, self.tensor

    @property
    def devices(self) -> int:
        """Number of all devices."""
        return math.prod(self.sizes)

    @property
    def rows(self) -> int:
        """Shards of a batch."""
        return self.replica * self.fsdp

    def check_network(self, model: ModelConfig) -> None:
        """Refuse a network that the mesh cannot shard.

        Raises:
            ValueError: A stream's heads or width do not divide; names them.
        """
        if model.camera is not None and model.camera.heads % self.tensor:
            heads = f"the heads of camera attention, {model.camera.heads}"
            raise ValueError(f"--mesh {self}: tensor={self.tensor} does not divide {heads}")
        for name, stream in (("video", model.video), ("audio", model.audio)):
            rows = self.fsdp * self.tensor
            cuts = ("tensor", self.tensor, stream.heads, "heads"), ("fsdp", self.fsdp, stream.width, "width")
            for axis, parts, size, what in (*cuts, ("fsdp x tensor", rows, stream.width, "width")):
                if size % parts:
                    raise ValueError(f"--mesh {self}: {axis}={parts} does not divide {name}'s {what}, {size}")

    def check_batch(self, batch: int) -> None:
        """Refuse a batch whose rows cannot be sharded evenly.

        Raises:
            ValueError: The rows do not divide; names the nearest larger batch.
        """
        if batch % self.rows:
            more = -(-batch // self.rows) * self.rows
            raise ValueError(f"--batch {batch}: the mesh {self} takes multiples of {self.rows}, such as {more}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices in a mesh whose axes have type Auto; `devices` may come from a topology description.

    Raises:
        ValueError: The number of devices is not the config's.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) != config.devices:
        raise ValueError(f"--mesh {config}: needs {config.devices} devices, there are {len(devices)}")
    # Not jax.make_mesh: in a slice such as v6e:8x16 it refuses an axis that is only part of a side.
    placed = mesh_utils.create_device_mesh(config.sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use(config: MeshConfig, *, alone: bool = False) -> Iterator[Mesh | None]:
    """Context manager that activates the mesh.

    It yields None, and does nothing, for a single device in a single process.

    Args:
        config: Sizes of the mesh.
        alone: Give each process a mesh of its own devices, instead of one mesh over all devices.

    Raises:
        ValueError: As in `make_mesh`.
    """
    alone = alone or jax.process_count() == 1
    if config.devices == 1 and alone:
        yield None
        return
    mesh = make_mesh(config, jax.local_devices() if alone else None)
    with jax.set_mesh(mesh):
        yield mesh


def mesh_that_is_set() -> Mesh | None:
    """Return the active mesh, with its devices, or None."""
    return None if mesh_in_use() is None else jax.sharding.get_mesh()


def config_of(mesh: Mesh) -> MeshConfig:
    """Return the config of a mesh."""
    return MeshConfig(**{axis: mesh.shape[axis] for axis in AXES})


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Combine shapes and shardings into one tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: leading axis over replica and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def param_shardings(specs: PyTree, mesh: Mesh) -> PyTree:
    """Return a sharding for every declared weight.

    Raises:
        ValueError: A weight has two axes on one mesh axis, or a size that does not divide; names it.
    """
    return spec.shardings(specs, mesh, AT_REST)


def abstract(specs: PyTree, mesh: Mesh | None, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Return shapes, dtypes and shardings of declared weights, for `weights.load_component`."""
    shapes = spec.abstract(specs, dtype)
    return shapes if mesh is None else with_shardings(shapes, param_shardings(specs, mesh))


def init(specs: PyTree, key: jax.Array, mesh: Mesh | None, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Make initial values, each shard on its device; the values do not depend on the mesh."""
    if mesh is None:
        return spec.init(specs, key, dtype)
    return _run_onto(lambda key: spec.init(specs, key, dtype), param_shardings(specs, mesh), key)


def shardings_beside(tree: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """Return shardings for a tree that contains weights, or leaves like them, such as a trainer's state.

    A leaf is sharded like a weight if its path ends with the weight's path and its shape is the weight's. All other
    leaves are replicated.

    Args:
        tree: Arrays or shapes.
        specs: Declaration of the weights.
        mesh: The mesh.
    """
    shapes = {spec.path_name(path): s.shape for path, s in jax.tree_util.tree_flatten_with_path(specs)[0]}
    leaves = jax.tree_util.tree_flatten_with_path(param_shardings(specs, mesh))[0]
    known = {spec.path_name(path): sharding for path, sharding in leaves}

    def find(path: Any, leaf: Any) -> NamedSharding:
        parts = spec.path_name(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in known and shapes[name] == tuple(leaf.shape):
                return known[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(find, tree)


def abstract_beside(tree: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """Return a tree of arrays or shapes as shapes with the shardings of `shardings_beside`."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return with_shardings(shapes, shardings_beside(shapes, specs, mesh))


def make_beside(make: Callable[..., PyTree], *networks: PyTree, specs: PyTree, mesh: Mesh | None) -> PyTree:
    """Make a trainer's state `make(*networks)`, each shard on its device; the networks' buffers are donated."""
    if mesh is None:
        return make(*networks)
    shardings = shardings_beside(jax.eval_shape(make, *networks), specs, mesh)
    return _run_onto(make, shardings, *networks, donate_argnums=range(len(networks)))


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copy host values, which are the same in every process, whole to every device."""
    if mesh is None:
        return tree
    whole = replicated(mesh)

    def put(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, whole)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, whole, lambda index: host[index])

    return jax.tree.map(put, tree)


def rows_here(batch: int, mesh: Mesh) -> tuple[int, int]:
    """Return the range of a batch's rows that this process's devices hold.

    Raises:
        ValueError: The rows are not consecutive.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    parts = sorted({index[0].indices(batch)[:2] for index in indices if index is not None})
    start, stop = parts[0][0], parts[-1][1]
    if sum(end - begin for begin, end in parts) != stop - start:
        raise ValueError(f"--mesh {config_of(mesh)}: rows of process {jax.process_index()} are not side by side")
    return start, stop


def place_batch(rows: PyTree, batch: int, mesh: Mesh | None) -> PyTree:
    """Assemble a batch of `batch` rows on the mesh; `rows` are this process's share of it (`rows_here`)."""
    if mesh is None:
        return rows
    start, _ = rows_here(batch, mesh)
    sharding = batch_sharding(mesh)

    def put(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            begin, end, _ = index[0].indices(batch) if index else (0, batch, 1)
            return local[begin - start : end - start]

        return jax.make_array_from_callback((batch, *local.shape[1:]), sharding, part)

    return jax.tree.map(put, rows)


def _run_onto(make: Callable[..., PyTree], shardings: PyTree, *arguments: Any, **options: Any) -> PyTree:
    """Run `make` as one program whose results have `shardings`, a tree of the same form.

    The program returns leaves, because JAX would fill a tree with placeholders, which checked dataclasses refuse.
    """
    leaves, tree = jax.tree.flatten(shardings)
    program = jax.jit(lambda *arguments: jax.tree.leaves(make(*arguments)), out_shardings=leaves, **options)
    return tree.unflatten(program(*arguments))
