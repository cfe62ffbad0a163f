"""The two forms of what differs by layer: one tree whose leaves are stacked [L, ...], or a tuple of trees."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

Layers = Any
"""A tree stacked over the layers, or a tuple of trees."""


def is_list(tree: PyTree) -> bool:
    """Whether there is a tree for each layer. Named tuples, such as Streams, are trees of their own."""
    return type(tree) is tuple


def map_layers(function: Callable[..., Any], *trees: PyTree) -> PyTree:
    """Call a function with the trees of each layer, or once with those of all layers stacked."""
    return tuple(map(function, *trees)) if is_list(trees[0]) else function(*trees)
