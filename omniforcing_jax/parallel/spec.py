"""One declaration per weight: its shape, its logical axes and its initialiser.

Initial values, abstract shapes and shardings are tree maps over the same tree of `Spec`s. No other place in the package
states a weight's shape.
"""

import dataclasses
import math
import typing
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, PyTree

Initialiser = Callable[[Array, tuple[int, ...], DTypeLike], Array]
Rules = Mapping[str, str | tuple[str, ...] | None]


def zeros(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return zeros."""
    return jnp.zeros(shape, dtype)


def ones(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return ones."""
    return jnp.ones(shape, dtype)


def normal(scale: float) -> Initialiser:
    """Return an initialiser with standard deviation `scale`."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


def fan_in(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a normal with standard deviation 1 / sqrt(last axis), for `[..., out, in]` matrices."""
    return normal(1 / math.sqrt(shape[-1]))(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A weight before it exists.

    Attributes:
        shape: Its sizes.
        axes: The logical name of each axis, or None where it is never sharded.
        init: Makes the initial value from (key, shape, dtype).
        dtype: Its type whatever type the network's weights have, as eight bits need it; None is the network's type.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initialiser
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"axes={self.axes}: must name each axis of shape {self.shape}")


if TYPE_CHECKING:
    Leaf = Array | Spec | jax.ShapeDtypeStruct | NamedSharding | None
    """A weight in a tree: its array or, in a tree of the same form, its declaration, shape or sharding."""
    ArrayLeaf = Array
    """An array in a tree of values that are computed, not trained."""
else:  # JAX also fills trees with placeholders, which a check of the fields at run time would refuse
    Leaf = ArrayLeaf = Any


def array(leaf: Leaf) -> Array:
    """Read a weight where the tree is known to hold arrays; a statement for type checkers, free at run time."""
    return typing.cast(Array, leaf)


def stacked(specs: PyTree, layers: int) -> PyTree:
    """Prepend a `layers` axis to every declaration in the tree."""
    return jax.tree.map(lambda s: dataclasses.replace(s, shape=(layers, *s.shape), axes=("layers", *s.axes)), specs)


def init(specs: PyTree, key: Array, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Make initial values; a leaf's value depends only on the key and on its own path."""

    def make(path: Any, spec: Spec) -> Array:
        return spec.init(jax.random.fold_in(key, zlib.crc32(path_name(path).encode())), spec.shape, spec.dtype or dtype)

    return jax.tree_util.tree_map_with_path(make, specs)


def abstract(specs: PyTree, dtype: DTypeLike = jnp.float32) -> PyTree:
    """Return shapes and dtypes without values."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype or dtype), specs)


def shardings(specs: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Return a NamedSharding per leaf: `rules` map logical axes to mesh axes; axes without a rule are replicated.

    Raises:
        ValueError: Two axes of one weight would go to the same mesh axis, or a size does not divide.
    """
    return jax.tree_util.tree_map_with_path(lambda path, s: _sharding(path_name(path), s, mesh, rules), specs)


def _sharding(name: str, spec: Spec, mesh: Mesh, rules: Rules) -> NamedSharding:
    axes = [rules.get(axis) if axis else None for axis in spec.axes]
    groups = [() if a is None else (a,) if isinstance(a, str) else tuple(a) for a in axes]
    used = [axis for group in groups for axis in group]
    if len(used) != len(set(used)):
        raise ValueError(f"{name}: axes {spec.axes} go to mesh axes {axes}, one of them twice")
    for size, group in zip(spec.shape, groups, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in group)
        if size % parts:
            raise ValueError(f"{name}: size {size} of {spec.shape} does not divide over {group} ({parts} devices)")
    return NamedSharding(mesh, PartitionSpec(*axes))


def path_name(path: Any) -> str:
    """Return a leaf's path as it names the tensor on disk, such as `layers/video/self_attn/q/w`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def count(tree: PyTree) -> int:
    """Return the number of parameters in a tree of leaves with shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
