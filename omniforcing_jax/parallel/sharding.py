"""Sharding rules, and the functions through which the network's code applies them.

A mesh has three axes: `replica` (whole copies), `fsdp` (weights are sharded, and gathered where they are used) and
`tensor` (heads and mlp columns are sharded, and stay so). Weights carry logical axes (parallel/spec.py), and
activations name theirs here. One table maps both to mesh axes. The mesh is the active one (`jax.set_mesh`); without it
these functions do nothing.
"""

import math
from functools import partial

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, DTypeLike, PyTree

from omniforcing_jax.parallel.spec import Rules, Spec

AXES = ("replica", "fsdp", "tensor")
BATCH = ("replica", "fsdp")  # mesh axes that share a batch

# The rows of a matrix [out, in] are sharded over fsdp. A matrix that produces heads or mlp columns (`to_heads`,
# `to_mlp`) is sharded twice on its first axis. If it were sharded on its last axis, libtpu 0.0.42.1 would sum its whole
# gradient on every chip instead of scattering it, and a shard on disk would be read in thousands of pieces.
AT_REST: Rules = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "to_heads": ("tensor", "fsdp"),
    "to_mlp": ("tensor", "fsdp"),
}
IN_USE: Rules = {**AT_REST, "embed": None, "to_heads": "tensor", "to_mlp": "tensor"}  # of the layer that is running
ACTIVATIONS: Rules = {"batch": BATCH, "heads": "tensor"}


def mesh_in_use() -> AbstractMesh | None:
    """Return the active mesh if it has the axes of this module, else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if set(AXES) <= set(mesh.axis_names) else None


def activation_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: AbstractMesh) -> PartitionSpec:
    """Return how an activation is sharded; a named axis whose size does not divide stays whole.

    Args:
        shape: Its sizes.
        axes: "batch", "heads" or None for each axis.
        mesh: A mesh with the axes of this module.
    """

    def mesh_axes(size: int, axis: str | None) -> str | tuple[str, ...] | None:
        found = ACTIVATIONS[axis] if axis else None
        return None if size % _parts(mesh, found) else found

    return PartitionSpec(*(mesh_axes(size, axis) for size, axis in zip(shape, axes, strict=True)))


def constrain(x: Array, *axes: str | None) -> Array:
    """Shard an activation by its named axes; every other axis is whole."""
    mesh = mesh_in_use()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, axes, mesh))


def gather(params: PyTree, specs: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Gather the weights of a layer over `fsdp`; their gradient is scattered back to the shards.

    Shards over `tensor` stay. Weights are cast before they are gathered, so that the transfer is as narrow as the
    computation. A weight of several arrays, as one in eight bits is, keeps their types; all of them begin with the
    weight's axes.

    Args:
        params: Weights of a layer, or of any other part of the network.
        specs: Their declaration.
        dtype: Type in which linear maps are computed; None keeps the weights' own.
    """
    mesh = mesh_in_use()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return params

    def one(spec: Spec, weight: PyTree) -> PyTree:
        at_rest, in_use = (_weight_axes(spec, rules) for rules in (AT_REST, IN_USE))
        if at_rest == in_use:
            return weight
        cast = weight.astype(dtype) if dtype is not None and isinstance(weight, jax.Array) else weight
        return jax.tree.map(
            lambda x: _gathered(x, PartitionSpec(*in_use[: x.ndim]), PartitionSpec(*at_rest[: x.ndim])), cast
        )

    return jax.tree.map(one, specs, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(weight: Array, in_use: PartitionSpec, at_rest: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(weight, in_use)


def _gathered_forward(weight: Array, in_use: PartitionSpec, at_rest: PartitionSpec) -> tuple[Array, None]:
    return _gathered(weight, in_use, at_rest), None


def _gathered_backward(in_use: PartitionSpec, at_rest: PartitionSpec, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, at_rest),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _weight_axes(spec: Spec, rules: Rules) -> list[str | tuple[str, ...] | None]:
    return [rules.get(axis) if axis else None for axis in spec.axes]


def _parts(mesh: AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
