"""Which matrices of a network, and which keys of its cache, are in eight bits: the default choice, and its declaration.

Modulation, entry and exit are never in eight bits, nor the gates of heads. By default the first and the last layers are
not, as in LTX-2's own float8 files, and not what belongs to the audio stream alone, because sound suffers first.

Of the cache video's keys and values are in eight bits, which are nearly all of it. Audio's stay wide, with the sinks.
"""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from omniforcing_jax.config import EightBitKind, EightBits, ModelConfig
from omniforcing_jax.nn.attention import Sites
from omniforcing_jax.nn.quantised import EIGHTS, Eights, quantised_spec
from omniforcing_jax.nn.stack import MixedStack
from omniforcing_jax.parallel.spec import Spec, path_name
from omniforcing_jax.strict_json import require

ATTENTION = ("q", "k", "v", "o")
STREAM_PARTS = (
    *(f"{attention}/{name}" for attention in ("self_attn", "text_attn") for name in ATTENTION),
    *("mlp/up", "mlp/down"),
)
CROSSINGS = tuple(f"{crossing}/{name}" for crossing in ("a2v", "v2a") for name in ATTENTION)
VIDEO, AUDIO = (tuple(f"{stream}/{part}" for part in STREAM_PARTS) for stream in ("video", "audio"))
DEFAULT_PARTS = (*VIDEO, *CROSSINGS)
ALL_PARTS = (*VIDEO, *AUDIO, *CROSSINGS)
KEPT_FIRST, KEPT_LAST = 1 / 48, 5 / 48
"""Shares of the layers, at both ends, that stay wide: layers 0 and 43 to 47 of 48."""


class EightBitCache(NamedTuple):
    """Which keys and values of a cache are in eight bits.

    Attributes:
        kind: The kind of eight bits.
        sites: Fields of `Sites` whose rings have them.
        pinned: Whether what these sites have pinned has them, too.
    """

    kind: EightBitKind
    sites: tuple[str, ...] = ("video_self", "v2a")
    pinned: bool = True


class PastEights(NamedTuple):
    """The numbers of what a site has in eight bits: its ring, its pinned blocks; None for what it has wide."""

    ring: Eights | None
    pinned: Eights | None


def eights_by_site(cache: EightBitCache | None) -> Sites:
    """Return a PastEights for each site."""

    def at(site: str) -> PastEights:
        if cache is None or site not in cache.sites:
            return PastEights(None, None)
        eights = EIGHTS[cache.kind]
        return PastEights(eights, eights if cache.pinned else None)

    return Sites(**{field.name: at(field.name) for field in dataclasses.fields(Sites)})


def eight_bit_kind(value: str | None, field: str) -> EightBitKind | None:
    """Read the kind of eight bits that a field of a request names; None for None.

    Raises:
        ValueError: There is no such kind.
    """
    kinds = [kind.value for kind in EightBitKind]
    require(value is None or value in kinds, field, value, f"must be one of {kinds}")
    return None if value is None else EightBitKind(value)


def eight_bit_cache(value: str | None) -> EightBitCache | None:
    """Choose by the kind that `cache_dtype` names what of a cache is in eight bits; None for None.

    Raises:
        ValueError: There is no such kind.
    """
    kind = eight_bit_kind(value, "cache_dtype")
    return None if kind is None else EightBitCache(kind)


def default_eight_bits(layers: int, kind: EightBitKind) -> EightBits:
    """Choose matrices of a network of so many layers; shares of layers are rounded, a half up."""
    first, last = (int(layers * share + 0.5) for share in (KEPT_FIRST, KEPT_LAST))
    return EightBits(kind=kind, layers=tuple(range(first, layers - last)), parts=DEFAULT_PARTS)


def in_eight_bits(config: ModelConfig, kind: EightBitKind | None) -> ModelConfig:
    """Return the config with the default choice of this kind, or unchanged for None or if it has this kind already.

    Raises:
        ValueError: The network is in eight bits of another kind.
    """
    if kind is None or (config.eight_bits is not None and config.eight_bits.kind is kind):
        return config
    found = None if config.eight_bits is None else config.eight_bits.kind.value
    rule = f"cannot be had of weights that are in {found} already; convert them again from their source"
    require(found is None, "weights_dtype", kind.value, rule)
    return dataclasses.replace(config, eight_bits=default_eight_bits(config.layers, kind))


def eight_bits_spec(layers: PyTree, eight_bits: EightBits | None) -> PyTree:
    """Declare some matrices of declared layers, `[L, O, I]` each, in eight bits.

    Raises:
        ValueError: A part is no matrix of these layers; names it.
    """
    if eight_bits is None:
        return layers
    names = {f"{part}/w" for part in eight_bits.parts}
    known = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(layers)[0]}
    for part in eight_bits.parts:
        require(f"{part}/w" in known, "eight_bits.parts", part, "must be a matrix of a layer, as video/mlp/up")

    def declare(path: object, spec: Spec) -> Spec | MixedStack:
        return _mixed(spec, eight_bits) if path_name(path) in names else spec

    return jax.tree_util.tree_map_with_path(declare, layers)


def _mixed(spec: Spec, eight_bits: EightBits) -> MixedStack:
    count, (total, *shape) = len(eight_bits.layers), spec.shape
    narrow, wide = (dataclasses.replace(spec, shape=(part, *shape)) for part in (count, total - count))
    return MixedStack(
        narrow=quantised_spec(narrow, eight_bits.kind), wide=wide if total > count else None, layers=eight_bits.layers
    )
