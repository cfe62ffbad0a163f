"""A mesh of devices as a value, and placing on it: networks, trainers' states, batches.

    with use(MeshConfig(fsdp=8)) as mesh:   # or --mesh 1,8,1 of a command
        params = init(transformer_spec(model), key, mesh)

Shardings of weights follow from their declarations by the table in parallel/sharding.py; whatever else has a leaf for
each weight (moments, averages, gradients) lies as the weights do; the rest is on every device. Functions that take a
mesh take None for one device and then leave everything where it is.
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
      replica: whole copies of all weights, each with its own rows of a batch.
      fsdp: parts that weights are cut into; each has its own rows of a batch.
      tensor: parts that heads and mlp columns are cut into; they share their rows.
    """

    replica: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        """Check ranges."""
        for name, size in zip(AXES, self.sizes, strict=True):
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")

    @classmethod
    def parse(cls, text: str) -> "MeshConfig":
        """Read `R,F,T`.

        Raises:
          ValueError: if it is not three positive numbers.
        """
        numbers = text.split(",")
        if len(numbers) != 3 or not all(number.strip().isdecimal() for number in numbers):
            raise ValueError(f"--mesh {text}: must be three numbers, replica,fsdp,tensor, such as 1,8,1")
        return cls(**dict(zip(AXES, map(int, numbers), strict=True)))

    def __str__(self) -> str:
        """As `parse` reads it."""
        return ",".join(map(str, self.sizes))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Devices along replica, fsdp, tensor."""
        return self.replica, self.fsdp, self.tensor

    @property
    def devices(self) -> int:
        """Devices in all."""
        return math.prod(self.sizes)

    @property
    def rows(self) -> int:
        """Parts that a batch is cut into."""
        return self.replica * self.fsdp

    def check_network(self, model: ModelConfig) -> None:
        """Refuse a network that the mesh cannot cut.

        Raises:
          ValueError: if a stream's heads or width do not divide; names them.
        """
        for name, stream in (("video", model.video), ("audio", model.audio)):
            rows = self.fsdp * self.tensor
            cuts = ("tensor", self.tensor, stream.heads, "heads"), ("fsdp", self.fsdp, stream.width, "width")
            for axis, parts, size, what in (*cuts, ("fsdp x tensor", rows, stream.width, "width")):
                if size % parts:
                    raise ValueError(f"--mesh {self}: {axis}={parts} does not divide {name}'s {what}, {size}")

    def check_batch(self, batch: int) -> None:
        """Refuse a batch whose rows cannot be spread.

        Raises:
          ValueError: names the nearest batch above.
        """
        if batch % self.rows:
            more = -(-batch // self.rows) * self.rows
            raise ValueError(f"--batch {batch}: the mesh {self} takes multiples of {self.rows}, such as {more}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lay devices out; `devices` may be those of a topology description. All axes are of type Auto.

    Raises:
      ValueError: if there are more or fewer devices than the config has places.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) != config.devices:
        raise ValueError(f"--mesh {config}: has {config.devices} places, there are {len(devices)} devices")
    # Not jax.make_mesh: of a slice such as v6e:8x16 it takes no axis that is but a part of a side.
    placed = mesh_utils.create_device_mesh(config.sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use(config: MeshConfig, *, alone: bool = False) -> Iterator[Mesh | None]:
    """Set the mesh for what is inside; gives None, and sets nothing, for one place in one process.

    Args:
      config: of the mesh.
      alone: each process has a mesh of its own devices, instead of one of all devices.

    Raises:
      ValueError: as `make_mesh`.
    """
    alone = alone or jax.process_count() == 1
    if config.devices == 1 and alone:
        yield None
        return
    mesh = make_mesh(config, jax.local_devices() if alone else None)
    with jax.set_mesh(mesh):
        yield mesh


def mesh_that_is_set() -> Mesh | None:
    """Return the mesh that is set, with its devices; None without one."""
    return None if mesh_in_use() is None else jax.sharding.get_mesh()


def config_of(mesh: Mesh) -> MeshConfig:
    """Return the config that a mesh was made of."""
    return MeshConfig(**{axis: mesh.shape[axis] for axis in AXES})


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Put shapes and shardings together."""
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole, on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over replica and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def param_shardings(specs: PyTree, mesh: Mesh) -> PyTree:
    """Return a sharding for every declared weight.

    Raises:
      ValueError: names a weight with two axes on one mesh axis, or with a size that does not divide.
    """
    return spec.shardings(specs, mesh, AT_REST)


def abstract(specs: PyTree, mesh: Mesh | None, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Return shapes, types and shardings of declared weights, as `weights.load_component` takes them."""
    shapes = spec.abstract(specs, dtype)
    return shapes if mesh is None else with_shardings(shapes, param_shardings(specs, mesh))


def init(specs: PyTree, key: jax.Array, mesh: Mesh | None, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Make initial values, each part on its device; the same values on every mesh."""
    if mesh is None:
        return spec.init(specs, key, dtype)
    return _run_onto(lambda key: spec.init(specs, key, dtype), param_shardings(specs, mesh), key)


def shardings_beside(tree: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """Return shardings for a tree that holds weights, or leaves like them, anywhere within: a trainer's state.

    A leaf whose path ends as a weight's and that has its shape lies as the weight does; all others are replicated.

    Args:
      tree: of arrays or shapes.
      specs: declaration of the weights.
      mesh: where to.
    """
    shapes = {spec.path_name(path): s.shape for path, s in jax.tree_util.tree_flatten_with_path(specs)[0]}
    leaves = jax.tree_util.tree_flatten_with_path(param_shardings(specs, mesh))[0]
    places = {spec.path_name(path): sharding for path, sharding in leaves}

    def place(path: Any, leaf: Any) -> NamedSharding:
        parts = spec.path_name(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in places and shapes[name] == tuple(leaf.shape):
                return places[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract_beside(tree: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """Return a tree of arrays or shapes as shapes with the shardings of `shardings_beside`."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return with_shardings(shapes, shardings_beside(shapes, specs, mesh))


def make_beside(make: Callable[..., PyTree], *networks: PyTree, specs: PyTree, mesh: Mesh | None) -> PyTree:
    """Make a trainer's state of networks, whose buffers it takes over: `make(*networks)`, each part on its device."""
    if mesh is None:
        return make(*networks)
    shardings = shardings_beside(jax.eval_shape(make, *networks), specs, mesh)
    return _run_onto(make, shardings, *networks, donate_argnums=range(len(networks)))


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Put host values, the same in every process, whole on every device."""
    if mesh is None:
        return tree
    place = replicated(mesh)

    def put(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, place)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    return jax.tree.map(put, tree)


def rows_here(batch: int, mesh: Mesh) -> tuple[int, int]:
    """Return the range of a batch's rows that this process's devices hold.

    Raises:
      ValueError: if they do not follow each other.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    parts = sorted({index[0].indices(batch)[:2] for index in places if index is not None})
    start, stop = parts[0][0], parts[-1][1]
    if sum(end - begin for begin, end in parts) != stop - start:
        raise ValueError(f"--mesh {config_of(mesh)}: rows of process {jax.process_index()} are not side by side")
    return start, stop


def place_batch(rows: PyTree, batch: int, mesh: Mesh | None) -> PyTree:
    """Make a batch of `batch` rows on the mesh of the rows that this process has, those of `rows_here`."""
    if mesh is None:
        return rows
    start, _ = rows_here(batch, mesh)
    place = batch_sharding(mesh)

    def put(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            begin, end, _ = index[0].indices(batch) if index else (0, batch, 1)
            return local[begin - start : end - start]

        return jax.make_array_from_callback((batch, *local.shape[1:]), place, part)

    return jax.tree.map(put, rows)


def _run_onto(make: Callable[..., PyTree], shardings: PyTree, *arguments: Any, **options: Any) -> PyTree:
    """Run `make` as one program whose results come out where `shardings`, a tree like them, says.

    The program gives leaves: JAX would fill a tree with placeholders, which checked dataclasses refuse.
    """
    places, tree = jax.tree.flatten(shardings)
    program = jax.jit(lambda *arguments: jax.tree.leaves(make(*arguments)), out_shardings=places, **options)
    return tree.unflatten(program(*arguments))
