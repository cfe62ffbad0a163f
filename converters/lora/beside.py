"""LoRA files read for use beside a network's weights: the factors of each of its matrices, nothing fused.

The keys, their spellings and the scales are those that `fuse.py` knows. A change of a bias is one rank more, which
counts whatever the input is. What changes a whole matrix, or another component than the transformer, can only be fused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.weights import name_leaves
from omniforcing_jax.model.lora import Factors, LoraFactors

from ..component import Component
from ..finite import check_finite
from ..formats.transformer import COMPONENT
from ..lazy_tensor import LazyTensor
from .keys import Module, Role, find_file
from .names import OF_CONNECTORS, Place, Places, find_place, name_places, refuse_two, strip_prefixes
from .scale import read_scaled

FUSE = "fuse it with `convert --lora`"


class Ranks(NamedTuple):
    """The changes of one matrix of one layer, see `LoraFactors`."""

    down: np.ndarray
    up: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


Found = dict[int | None, tuple[str, Ranks]]
"""What modules change in one matrix, by layer; None for a matrix that no layer has."""


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
    places, shapes = name_places([(COMPONENT, config)]), _shapes(COMPONENT, config)
    found: dict[str, Found] = {}
    for module, scale, _ in read_scaled(path):
        place = _find(path, module, places)
        native = place.native.removesuffix("/b") + "/w" if place.native.endswith("/b") else place.native
        layers = found.setdefault(native, {})
        refuse_two(path, module.name, [layers[place.layer][0]] if place.layer in layers else [])
        layers[place.layer] = (module.name, _list_ranks(path, module, scale, shapes[native][-2:], native))
    return {native: _stack(layers, shapes[native]) for native, layers in found.items()}


def _find(path: Path, module: Module, places: Places) -> Place:
    """Find the matrix whose product a module changes, or the bias if it changes nothing else."""
    if Role.DIFF in module.tensors:
        raise ValueError(f"{path}: {module.name}.diff is no change of low rank; {FUSE}")
    has_bias = Role.UP_BIAS in module.tensors or Role.DIFF_BIAS in module.tensors
    try:
        bias = find_place(path, module.name, "bias", places) if has_bias else None
        return find_place(path, module.name, "weight", places) if bias is None or Role.DOWN in module.tensors else bias
    except ValueError:
        if OF_CONNECTORS.match(f"{strip_prefixes(module.name)}."):
            raise ValueError(f"{path}: {module.name} changes the connectors, not the transformer; {FUSE}") from None
        raise


def _shapes(component: Component, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in name_leaves(component.abstract(config)).items()}


def _list_ranks(path: Path, module: Module, scale: float, shape: tuple[int, ...], native: str) -> Ranks:
    """Read a module: its factors, then one rank for each change of the bias.

    Raises:
        ValueError: A change has not the shape of its matrix, or a value is not finite.
    """
    (outputs, inputs), down, up, scales = shape, [np.zeros((0, shape[1]), np.float32)], [], []
    if Role.DOWN in module.tensors:
        down, up, scales = [_load(module, Role.DOWN)], [_load(module, Role.UP)], [scale] * module.rank
    for role, factor in ((Role.UP_BIAS, scale), (Role.DIFF_BIAS, 1.0)):
        if role in module.tensors:
            up, scales = [*up, _load(module, role).reshape(-1, 1)], [*scales, factor]
    changed = {(len(each), down[0].shape[1]) for each in up}
    if changed != {(outputs, inputs)}:
        where = f"{path}: the change of {module.name}"
        raise ValueError(f"{where} has shape {changed.pop()}, {native} has {(outputs, inputs)}")
    of_bias = len(scales) - len(down[0])
    down = np.concatenate([down[0], np.zeros((of_bias, inputs), down[0].dtype)])
    offset = np.repeat(np.array([0, 1], np.float32), [len(scales) - of_bias, of_bias])
    return Ranks(down, np.concatenate(up, axis=1), np.array(scales, np.float32), offset)


def _stack(layers: Found, shape: tuple[int, ...]) -> LoraFactors:
    """Put the ranks of all layers together; a layer without any, or with fewer ranks, has zeros."""
    *outer, outputs, inputs = shape
    each = [ranks for _, ranks in layers.values()]
    rank, types = max(len(ranks.scale) for ranks in each), {ranks.up.dtype for ranks in each}
    dtype = types.pop() if len(types) == 1 else np.dtype(np.float32)
    down, up = np.zeros((*outer, rank, inputs), dtype), np.zeros((*outer, outputs, rank), dtype)
    scale, offset = (np.zeros((*outer, rank), np.float32) for _ in range(2))
    for layer, (_, ranks) in layers.items():
        at, own = () if layer is None else layer, len(ranks.scale)
        down[at][:own], up[at][:, :own] = ranks.down, ranks.up
        scale[at][:own], offset[at][:own] = ranks.scale, ranks.offset
    return LoraFactors(down=down, up=up, scale=scale, offset=offset, owner=np.zeros(rank, np.int64))


def _load(module: Module, role: Role) -> np.ndarray:
    tensor: LazyTensor = module.tensors[role]
    (values,) = check_finite([np.asarray(tensor.load())], f"{module.name}: {role.name.lower()}", tensor.where)
    return values
