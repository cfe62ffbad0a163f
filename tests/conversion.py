"""Weights from and to other formats by the code that `convert` and `export` run, in memory."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from converters.component import LTX2, Component
from converters.formats.transformer import COMPONENT, PREFIX
from converters.lazy_tensor import wrap_array
from converters.native_component import rename_tensors, wrap_tree
from converters.original_keys import read_original_keys
from converters.overrides import Overrides
from converters.plan import Plan, plan_component
from converters.source_component import SourceComponent
from omniforcing_jax.io.weights import fill_tree


def to_native(component: Component, naming: str, config, tensors: dict, where: str = "source"):
    """Convert a component's tensors, by key, into its native tree."""
    source = SourceComponent(
        name=component.name,
        format="test",
        naming=naming,
        where=where,
        tensors={key: wrap_array(np.asarray(value), where) for key, value in tensors.items()},
        component=component,
        config=config,
    )
    return fill_tree(component.abstract(config), read_plan(plan_component(source)))


def read_plan(plan: Plan) -> dict[str, np.ndarray]:
    """Read what `convert` writes into model.safetensors."""
    return {name: np.concatenate(list(plan.read(name))).reshape(shape) for name, (_, shape) in plan.layout.items()}


def to_source(component: Component, naming: str, config, tree) -> dict[str, np.ndarray]:
    """Export a component's native tree: its tensors by key."""
    renamed = rename_tensors(wrap_tree(component, config, tree), naming)
    return {key: np.array(tensor.load(), order="C") for key, tensor in renamed.items()}


def read_original(tensors: dict, heads: int, metadata: dict | None = None) -> dict[str, SourceComponent]:
    """List the components of a file under original keys by name; without metadata the network is OmniForcing's."""
    lazy = {key: wrap_array(np.asarray(value), "file") for key, value in tensors.items()}
    overrides = Overrides(heads=heads, release=None if metadata else "omniforcing")
    return {each.name: each for each in read_original_keys(Path("file"), lazy, metadata or {}, overrides)}


def network_to_original(config, tree) -> dict[str, np.ndarray]:
    """Export a transformer, or a gradient of one, under original keys without their prefix."""
    return {key.removeprefix(PREFIX): value for key, value in to_source(COMPONENT, LTX2, config, tree).items()}


def assert_not_expressed(table, config, change: dict) -> None:
    """A config that a format cannot hold is refused by the name of the field."""
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name}="):
        table.write(dataclasses.replace(config, **change))
