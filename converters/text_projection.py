"""LTX-2.5's connectors, of which each file has a part: the text projection is in the text encoder's file.

Files before LTX-2.5 have the projection beside the network. Parts that a command names are joined, in any order. A part
that stays alone cannot run, and passes through untouched.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import open_tensors

from .component import LTX2
from .formats.connectors import PROJECTION
from .lazy_tensor import LazyTensor
from .native_component import PASSED, place_of
from .source_component import SourceComponent

NAME = "connectors"
ALONE = {  # what is missing, by whether the part is the projection
    True: "only the text projection is here; the connectors are in the transformer's file, name it with --from, too",
    False: "the text projection is in the text encoder's file, name it with --from, too",
}


def is_part(source: SourceComponent) -> bool:
    """Whether a source has connectors without their text projection, or the projection alone."""
    kinds = {key.startswith(PROJECTION) for key in source.tensors}
    return source.name == NAME and source.naming == LTX2 and len(kinds) == 1


def is_projection(source: SourceComponent) -> bool:
    """Whether a part is the projection."""
    return any(key.startswith(PROJECTION) for key in source.tensors)


def join(found: SourceComponent, earlier: SourceComponent | None) -> SourceComponent:
    """Join a part with what an earlier source has of the connectors; others are returned as they are.

    The network's part has the header and the config. Without a config it takes that of the part that it replaces.
    """
    if earlier is None or earlier.naming != LTX2 or not is_part(found):
        return found
    if found.config is None and earlier.config is not None and not is_projection(found):
        note = f"has no config; that of {earlier.where} is taken"
        found = dataclasses.replace(
            found, component=earlier.component, config=earlier.config, notes=(*found.notes, note)
        )
    projection, network = (found, earlier) if is_projection(found) else (earlier, found)
    tensors = {key: each for key, each in network.tensors.items() if not key.startswith(PROJECTION)}
    tensors |= {key: each for key, each in projection.tensors.items() if key.startswith(PROJECTION)}
    note = f"the text projection is from {projection.where}"
    joined = dataclasses.replace(network, tensors=tensors, is_joined=True, notes=(*network.notes, note))
    return joined if not is_part(joined) else found


def select(native_name: str, tensors: Mapping[str, LazyTensor], *, projection: bool) -> dict[str, LazyTensor]:
    """Return the text projection of connectors, or all but that; other components' tensors are returned as they are."""
    is_other = native_name != NAME
    return {key: each for key, each in tensors.items() if is_other or key.startswith(PROJECTION) == projection}


def pass_through(part: SourceComponent) -> SourceComponent:
    """Return a part that stayed alone, without its table."""
    return dataclasses.replace(part, component=None, config=None, notes=(*part.notes, ALONE[is_projection(part)]))


def check_earlier(parts: Mapping[str, SourceComponent], whole: Mapping[str, SourceComponent]) -> None:
    """Refuse a part that stayed alone after whole connectors of another format, which it would replace.

    Raises:
        ValueError: It would; names both sources.
    """
    for part in (part for name, part in parts.items() if name in whole):
        rule = f"{ALONE[is_projection(part)]}; or name this one first"
        raise ValueError(f"{part.where}: would replace the whole connectors of {whole[part.name].where}: {rule}")


def check_replaced(folder: Path, sources: Iterable[SourceComponent]) -> None:
    """Refuse to write a part that stayed alone over whole connectors, or over the other part.

    Raises:
        ValueError: It would be; names the folder and the part.
    """
    for part in filter(is_part, sources):
        place = place_of(folder, NAME)
        is_whole = (place / weights.MODEL).exists()
        if is_whole or _list_kinds(place / PASSED) - {is_projection(part)}:
            raise ValueError(f"{place}: would lose what {part.where} has not: {ALONE[is_projection(part)]}")


def _list_kinds(path: Path) -> set[bool]:
    """Tell whether tensors of connectors that passed through are of the projection; empty without such a file."""
    return {key.startswith(PROJECTION) for key in open_tensors(path).entries} if path.is_file() else set()
