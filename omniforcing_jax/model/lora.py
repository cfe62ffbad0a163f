"""LoRAs beside the weights of a network: put there, weighed anew, taken away.

A network has its LoRAs in `LowRank` leaves (nn/low_rank.py). Those of several files lie side by side as more ranks of
one leaf, so the number of files costs no further products.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, Float, Int

from omniforcing_jax.nn.linear import Linear
from omniforcing_jax.nn.low_rank import LowRank, is_low_rank
from omniforcing_jax.parallel.spec import path_name

LAYERS, JOINED = "layers/", "joined"
JOINED_IN_SELF, JOINED_ELSEWHERE = ("q", "k", "v"), ("k", "v")  # as `join_projections` puts them together


@dataclass(frozen=True)
class LoraFactors:
    """All changes of one matrix, or of a stack of them (`...` is L, or nothing outside the layers).

    Attributes:
        down: First factors, [..., R, I].
        up: Second factors, [..., O, R].
        scale: Alpha / rank of each rank, [..., R], float32; 0 where a layer has fewer ranks than others.
        offset: 1 for ranks that change the bias, 0 for others, [..., R], float32.
        owner: The number of the file that a rank is from, [R].
    """

    down: np.ndarray
    up: np.ndarray
    scale: Float[np.ndarray, "*layers R"]
    offset: Float[np.ndarray, "*layers R"]
    owner: Int[np.ndarray, " R"]

    def row(self, layer: int) -> "LoraFactors":
        """Return the changes of one layer."""
        return LoraFactors(self.down[layer], self.up[layer], self.scale[layer], self.offset[layer], self.owner)


Factors = Mapping[str, LoraFactors]
"""Changes by the name of their matrix, as files have it: `layers/video/self_attn/q/w`."""

Parts = Sequence[LoraFactors | None]
"""Changes of the parts of a joined matrix, at least one of them; any other matrix is one part."""


def attach_loras(params: Any, factors: Factors, strengths: Sequence[float], dtype: DTypeLike) -> Any:
    """Put changes beside the matrices of a network that has none.

    Args:
        params: The network; its layers are stacked or a list.
        factors: The changes.
        strengths: Strength of each file.
        dtype: Type to have the factors in.
    """
    return _attach(params, factors, lambda w, parts: _beside(w, parts, strengths, dtype))


def attach_shapes(params: Any, factors: Factors, dtype: DTypeLike) -> Any:
    """Do the same to a network of shapes (`jax.ShapeDtypeStruct`), without the values of any change."""
    return _attach(params, factors, lambda w, parts: _shape_beside(w, parts, dtype))


def _attach(params: Any, factors: Factors, make: Callable[[Any, Parts], LowRank]) -> Any:
    def attach(path: Any, node: Any) -> Any:
        parts = _find_parts(path_name(path), factors) if isinstance(node, Linear) else None
        return node if parts is None else dataclasses.replace(node, w=make(node.w, parts))

    return jax.tree_util.tree_map_with_path(attach, params, is_leaf=lambda x: isinstance(x, Linear))


def set_strengths(params: Any, factors: Factors, strengths: Sequence[float]) -> Any:
    """Weigh the changes of a network anew; arguments as `attach_loras`."""

    def weigh(path: Any, node: Any) -> Any:
        if not (isinstance(node, Linear) and isinstance(node.w, LowRank)):
            return node
        parts = _find_parts(path_name(path), factors)
        assert parts is not None, "a change that no file has"
        return dataclasses.replace(node, w=dataclasses.replace(node.w, strength=_weigh(parts, strengths)))

    return jax.tree_util.tree_map_with_path(weigh, params, is_leaf=lambda x: isinstance(x, Linear))


def detach_loras(params: Any) -> Any:
    """Return a network as it was without changes."""
    return jax.tree.map(lambda x: x.w if is_low_rank(x) else x, params, is_leaf=is_low_rank)


def join_factors(each: Sequence[Factors]) -> Factors:
    """Lay the changes of several files side by side; the owner of a rank is the place of its file."""
    owned = [{name: (i, f) for name, f in factors.items()} for i, factors in enumerate(each)]
    names = dict.fromkeys(name for factors in each for name in factors)
    return {name: _side_by_side([factors[name] for factors in owned if name in factors]) for name in names}


def _side_by_side(each: Sequence[tuple[int, LoraFactors]]) -> LoraFactors:
    factors = [f for _, f in each]
    return LoraFactors(
        down=np.concatenate([f.down for f in factors], axis=-2),
        up=np.concatenate([f.up for f in factors], axis=-1),
        scale=np.concatenate([f.scale for f in factors], axis=-1),
        offset=np.concatenate([f.offset for f in factors], axis=-1),
        owner=np.concatenate([np.full(f.scale.shape[-1], i) for i, f in each]),
    )


def _find_parts(name: str, factors: Factors) -> Parts | None:
    """Find the changes of a linear map by its place: of each of its parts, or None if no part has any."""
    layer, place = None, name
    if name.startswith(LAYERS) and name.split("/")[1].isdigit():  # a list of layers
        _, number, place = name.split("/", 2)
        layer, place = int(number), LAYERS + place
    attention, _, last = place.rpartition("/")
    is_self = attention.endswith("self_attn")
    names = [last] if last != JOINED else JOINED_IN_SELF if is_self else JOINED_ELSEWHERE
    found = [factors.get(f"{attention}/{each}/w") for each in names]
    if not any(found):
        return None
    return found if layer is None else [None if each is None else each.row(layer) for each in found]


def _shape_beside(w: Any, parts: Parts, dtype: DTypeLike) -> LowRank:
    """Return the shapes of a matrix's leaf: those of the part with most ranks."""
    known = [part for part in parts if part is not None]
    (*outer, outputs, _), inputs = known[0].up.shape, known[0].down.shape[-1]
    most = max(part.scale.shape[-1] for part in known)

    def shape(*sizes: int, of: DTypeLike = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*outer, len(parts), *sizes), of)

    return LowRank(
        w=w,
        down=shape(most, inputs),
        up=shape(outputs, most),
        strength=shape(most, of=jnp.float32),
        offset=shape(most) if any(part.offset.any() for part in known) else None,
    )


def _beside(w: Any, parts: Parts, strengths: Sequence[float], dtype: DTypeLike) -> LowRank:
    """Build the leaf of a matrix; a part without changes, or with fewer ranks than others, has zeros."""
    shapes = _shape_beside(w, parts, dtype)
    return dataclasses.replace(
        shapes,
        down=_fill(shapes.down, [None if part is None else part.down for part in parts], 3),
        up=_fill(shapes.up, [None if part is None else part.up for part in parts], 3),
        strength=_weigh(parts, strengths),
        offset=_fill(shapes.offset, [None if part is None else part.offset for part in parts], 2),
    )


def _weigh(parts: Parts, strengths: Sequence[float]) -> jax.Array:
    each = [None if p is None else p.scale * np.asarray(strengths, np.float32)[p.owner] for p in parts]
    return _fill(_shape_beside(None, parts, jnp.float32).strength, each, 2)


def _fill(leaf: Any, parts: Sequence[np.ndarray | None], axes: int) -> Any:
    """Put the values of all parts into a leaf, of which the last axes are those of the parts and theirs."""
    if leaf is None:
        return None
    place = len(leaf.shape) - axes
    one = (*leaf.shape[:place], *leaf.shape[place + 1 :])
    return jnp.asarray(np.stack([_pad(part, one) for part in parts], place), leaf.dtype)


def _pad(values: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Fill an array up with zeros at the end of its axes."""
    if values is not None and values.shape == shape:
        return values
    padded = np.zeros(shape, np.float32 if values is None else values.dtype)
    if values is not None:
        padded[tuple(map(slice, values.shape))] = values
    return padded
