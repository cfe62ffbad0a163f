"""Layers that are stacked on a leading axis, of which some may have a matrix in eight bits and others not.

A scan needs layers of one form. So the layers are cut into stretches of consecutive ones that are alike, with a scan
over each. A stack is never cut itself, because that would copy weights: the scan runs over the numbers of layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, PyTree

from omniforcing_jax.nn.quantised import Quantised, is_quantised
from omniforcing_jax.parallel.spec import Leaf


@struct.dataclass
class MixedStack:
    """One matrix of every layer: in eight bits where the layer is one of `layers`, wide in the others."""

    narrow: Quantised  # [len(layers), O, I]
    wide: Leaf  # [the others, O, I], or None if there are no others
    layers: tuple[int, ...] = struct.field(pytree_node=False)

    def row(self, layer: int | Int[Array, ""], like: int) -> PyTree:
        """Return the matrix of a layer, which may be traced; `like` is the first one of its stretch."""
        before = sum(each < like for each in self.layers)
        stack, first = (self.narrow, before) if like in self.layers else (self.wide, like - before)
        return _row(stack, layer - like + first)


def is_mixed(leaf: Any) -> bool:
    """Whether a node of a tree is a `MixedStack`."""
    return isinstance(leaf, MixedStack)


def unstack(leaf: Any) -> tuple[Any, ...]:
    """Take a stacked leaf, or one whose arrays are tuples of rows, apart into what each layer has of it."""
    if not is_mixed(leaf):
        return tuple(leaf)
    narrow = iter(zip(leaf.narrow.values, leaf.narrow.scale, strict=True))
    wide = iter(() if leaf.wide is None else leaf.wide)
    count = len(leaf.narrow.values) + (0 if leaf.wide is None else len(leaf.wide))
    return tuple(Quantised(*next(narrow)) if i in leaf.layers else next(wide) for i in range(count))


def restack(rows: Sequence[Any], stack: Callable[[Sequence[Any]], Any]) -> Any:
    """Undo `unstack`; `stack` puts arrays together."""
    layers = tuple(i for i, row in enumerate(rows) if is_quantised(row))
    if not layers:
        return stack(rows)
    wide = [row for row in rows if not is_quantised(row)]
    narrow = jax.tree.map(lambda *parts: stack(parts), *(rows[i] for i in layers))
    return MixedStack(narrow=narrow, wide=stack(wide) if wide else None, layers=layers)


def take_layer(layers: PyTree, layer: int | Int[Array, ""], like: int | None = None) -> PyTree:
    """Take one layer out of stacked ones.

    Args:
        layers: Arrays [L, ...] and `MixedStack`s.
        layer: Its number.
        like: The first layer of its stretch; must be given where the number is traced.
    """
    first = int(layer) if like is None else like
    return jax.tree.map(lambda x: x.row(layer, first) if is_mixed(x) else _row(x, layer), layers, is_leaf=is_mixed)


def stretches(layers: PyTree) -> list[range] | None:
    """Cut the layers into ranges of consecutive ones that are alike; None if all of them are plain arrays."""
    mixed = [leaf for leaf in jax.tree.leaves(layers, is_leaf=is_mixed) if is_mixed(leaf)]
    if not mixed:
        return None
    narrow = set(mixed[0].layers)
    total = len(narrow) + (0 if mixed[0].wide is None else len(mixed[0].wide))
    starts = [i for i in range(total) if i == 0 or (i in narrow) != (i - 1 in narrow)]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], total], strict=True)]


def scan_layers(body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], x: PyTree, layers: PyTree) -> Any:
    """Scan over stacked layers, as `lax.scan` does; where some are in eight bits, stretch by stretch.

    Args:
        body: From what is carried, and one layer, to what is carried and the layer's own result.
        x: What is carried.
        layers: Whatever differs between the layers: arrays [L, ...] and `MixedStack`s.
    """
    ranges = stretches(layers)
    if ranges is None:
        return jax.lax.scan(body, x, layers)
    results = []
    for stretch in ranges:
        x, result = jax.lax.scan(_taking(body, layers, stretch.start), x, jnp.arange(stretch.start, stretch.stop))
        results.append(result)
    return x, results[0] if len(results) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)


def _taking(body: Callable[..., Any], layers: PyTree, like: int) -> Callable[..., Any]:
    return lambda x, layer: body(x, take_layer(layers, layer, like))


def _row(stack: PyTree, index: int | Int[Array, ""]) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), stack)
