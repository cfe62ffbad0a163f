"""LoRA files read for use beside a network's weights: the factors of each of its matrices, nothing fused.

The keys, their spellings and the scales are those that `fuse.py` knows. What is no change of low rank, or changes
another component than the transformer, can only be fused.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.model.lora import Factors, LoraFactors

from ..component import Component
from ..finite import check_finite
from ..formats.transformer import COMPONENT
from ..lazy_tensor import LazyTensor
from .keys import Module, Role, find_file, read_modules
from .names import OF_CONNECTORS, Place, Places, find_place, name_places, strip_prefixes
from .scale import find_scale, read_settings

FUSE = "fuse it with `convert --lora`"
Pairs = dict[int | None, tuple[Module, float]]  # by layer; None for a matrix that no layer has


def read_beside(config: ModelConfig, path: Path) -> Factors:
    """Read the factors of a LoRA by the names of the network's matrices.

    Args:
        config: The network.
        path: The LoRA, or a folder with only that.

    Raises:
        ValueError: The file is damaged, of another kind or of unclear scale; a module is not in this network, has
            another shape, or can only be fused. Names file and key.
    """
    path = find_file(path)
    modules, metadata = read_modules(path)
    settings = read_settings(path, modules, metadata)
    places, found = name_places([(COMPONENT, config)]), {}
    for module in modules:
        _refuse_what_is_fused(path, module)
        place = _find(path, module, places)
        pairs: Pairs = found.setdefault(place.native, {})
        if place.layer in pairs:
            other = pairs[place.layer][0].name
            raise ValueError(f"{path}: {module.name} and {other} are one tensor, given twice")
        pairs[place.layer] = (module, find_scale(path, module, settings)[0])
    shapes = _shapes(COMPONENT, config)
    return {native: _stack(path, native, pairs, shapes[native]) for native, pairs in found.items()}


def _refuse_what_is_fused(path: Path, module: Module) -> None:
    for role, ending in {Role.UP_BIAS: "lora_B.bias", Role.DIFF: "diff", Role.DIFF_BIAS: "diff_b"}.items():
        if role in module.tensors:
            raise ValueError(f"{path}: {module.name}.{ending} is no change of low rank; {FUSE}")


def _find(path: Path, module: Module, places: Places) -> Place:
    try:
        return find_place(path, module.name, "weight", places)
    except ValueError:
        if OF_CONNECTORS.match(f"{strip_prefixes(module.name)}."):
            raise ValueError(f"{path}: {module.name} changes the connectors, not the transformer; {FUSE}") from None
        raise


def _shapes(component: Component, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in name_leaves(component.abstract(config)).items()}


def _stack(path: Path, native: str, pairs: Pairs, shape: tuple[int, ...]) -> LoraFactors:
    """Put the factors of all layers together; a layer without any, or with fewer ranks, has zeros.

    Raises:
        ValueError: A change has not the shape of its matrix, or a factor has a value that is not finite.
    """
    *outer, outputs, inputs = shape
    rank = max(module.rank for module, _ in pairs.values())
    types = {module.tensors[role].dtype for module, _ in pairs.values() for role in (Role.DOWN, Role.UP)}
    dtype = types.pop() if len(types) == 1 else np.dtype(np.float32)
    down, up = np.zeros((*outer, rank, inputs), dtype), np.zeros((*outer, outputs, rank), dtype)
    scale = np.zeros((*outer, rank), np.float32)
    for layer, (module, factor) in pairs.items():
        at, own = () if layer is None else layer, module.rank
        sizes = (module.tensors[Role.UP].shape[0], module.tensors[Role.DOWN].shape[1])
        if sizes != (outputs, inputs):
            where = f"{path}: the change of {module.name}"
            raise ValueError(f"{where} has shape {sizes}, {native} has {(outputs, inputs)}")
        down[at][:own], up[at][:, :own] = (_load(module, role) for role in (Role.DOWN, Role.UP))
        scale[at][:own] = factor
    return LoraFactors(down=down, up=up, scale=scale, owner=np.zeros(rank, np.int64))


def _load(module: Module, role: Role) -> np.ndarray:
    tensor: LazyTensor = module.tensors[role]
    (values,) = check_finite([np.asarray(tensor.load())], f"{module.name}: {role.name.lower()}", tensor.where)
    return values
