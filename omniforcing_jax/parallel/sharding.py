"""Where arrays lie on a mesh: the rules table, and the seam through which the network's code states it.

A mesh has three axes: `replica` (whole copies), `fsdp` (weights are cut, and gathered where they are used) and `tensor`
(heads and mlp columns are cut, and stay so). Weights carry logical axes (parallel/spec.py), activations name theirs
here; one table sends both to mesh axes. The mesh is the one in use (`jax.set_mesh`); without one nothing here does
anything.
"""

import math
from functools import partial
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, DTypeLike, PyTree

from omniforcing_jax.parallel.spec import Rules, Spec

AXES = ("replica", "fsdp", "tensor")
BATCH = ("replica", "fsdp")  # mesh axes that a batch is spread over

# Of a matrix [out, in] rows are cut over fsdp; what makes heads or mlp columns (`to_heads`, `to_mlp`) is cut twice on
# its first axis. Were such a matrix cut on its last, libtpu 0.0.42.1 would sum its gradient whole on every chip instead
# of scattering it, and a part on disk would be read in thousands of pieces.
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
    """Return the mesh that is set, with the axes of this module; None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if set(AXES) <= set(mesh.axis_names) else None


def activation_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: AbstractMesh) -> PartitionSpec:
    """Say how an activation is cut: a named axis as `ACTIVATIONS` has it, whole where its size does not divide.

    Args:
      shape: its sizes.
      axes: "batch", "heads" or None for each.
      mesh: with the axes of this module.
    """
    places = [ACTIVATIONS[axis] if axis else None for axis in axes]
    divides = [size % _parts(mesh, place) == 0 for size, place in zip(shape, places, strict=True)]
    return PartitionSpec(*(place if good else None for place, good in zip(places, divides, strict=True)))


def constrain(x: Array, *axes: str | None) -> Array:
    """Cut an activation as its named axes want it; every other axis is whole."""
    mesh = mesh_in_use()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, axes, mesh))


def gather(params: PyTree, specs: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Bring the weights of a layer together over `fsdp`; their gradient goes back to where each part rests.

    What is cut over `tensor` stays cut. Weights that are gathered are cast first, so that what travels is as narrow as
    what is computed with.

    Args:
      params: of a layer, or of any other part of the network.
      specs: its declaration.
      dtype: type that its linear maps are computed in; None keeps their own.
    """
    mesh = mesh_in_use()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return params

    def one(spec: Spec, weight: Array) -> Array:
        at_rest, in_use = (_weight_spec(spec, rules) for rules in (AT_REST, IN_USE))
        if at_rest == in_use:
            return weight
        return _gathered(weight if dtype is None else weight.astype(dtype), in_use, at_rest)

    return jax.tree.map(one, specs, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(weight: Array, in_use: PartitionSpec, at_rest: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(weight, in_use)


def _gathered_forward(weight: Array, in_use: PartitionSpec, at_rest: PartitionSpec) -> tuple[Array, None]:
    return _gathered(weight, in_use, at_rest), None


def _gathered_backward(in_use: PartitionSpec, at_rest: PartitionSpec, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, at_rest),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _weight_spec(spec: Spec, rules: Rules) -> PartitionSpec:
    return PartitionSpec(*(rules.get(axis) if axis else None for axis in spec.axes))


def _parts(mesh: AbstractMesh, place: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in ((place,) if isinstance(place, str) else place or ()))
