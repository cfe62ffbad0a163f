"""The tensors that a LoRA may name, in every spelling: original or diffusers' names, dots or underscores.

Underscores for dots cannot be undone by rule. Names are therefore looked up among those of the network at hand. A name
that fits two tensors is refused.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..component import DIFFUSERS, LTX2, Component
from ..plan import Plan

CHANGED = ("transformer", "connectors")  # the components that LoRAs of LTX-2 change
PREFIXES = (
    *("base_model.model.", "base_model.", "model.diffusion_model.", "diffusion_model.", "model."),
    *("transformer.", "connectors.", "lora_unet_", "lora_transformer_", "lycoris_", "model_", "diffusion_model_"),
)
WRAPPED = ("embeddings_connector", "video_embeddings_connector")  # in musubi's wrapper, and in LTX-2's files
OF_CONNECTORS = re.compile(r"connectors\.|.*(embeddings_connector|text_embedding_projection|text_proj_in)[._]")


class Place(NamedTuple):
    """One tensor of a plan: the component, the native tensor and its layer."""

    component: str
    native: str
    layer: int | None


Places = Mapping[str, frozenset[Place]]


def strip_prefixes(name: str) -> str:
    """Remove what tools put in front of a module's name."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    first, other = WRAPPED
    return name.replace(first, other, 1) if name.startswith(first) else name


def list_places(plans: Mapping[str, Plan]) -> Places:
    """List every name that a LoRA may use for a tensor of these plans, without prefixes."""
    sources = [plans[name].source for name in CHANGED if name in plans]
    return name_places([(source.component, source.config) for source in sources if source.component is not None])


def name_places(networks: Iterable[tuple[Component, object]]) -> Places:
    """List every name that a LoRA may use for a tensor of these components with their configs, without prefixes."""
    places: dict[str, set[Place]] = {}
    for component, config in networks:
        for key, place in _list_keys(component, config):
            for spelled in (key, _with_underscores(key)):
                places.setdefault(spelled, set()).add(place)
    return {name: frozenset(found) for name, found in places.items()}


def _list_keys(component: Component, config: object) -> Iterable[tuple[str, Place]]:
    for naming in (LTX2, DIFFUSERS):
        for one in component.expand(config, naming):
            yield strip_prefixes(one.source), Place(component.name, one.native, one.layer)


def _with_underscores(key: str) -> str:
    """Spell the module as kohya does, and leave `.weight` or `.bias`."""
    module, dot, leaf = key.rpartition(".")
    return f"{module.replace('.', '_')}{dot}{leaf}"


def find_place(path: Path, module: str, leaf: str, places: Places) -> Place:
    """Find the tensor that a module's name means.

    Args:
        path: The file, for messages.
        module: The module, as the file spells it.
        leaf: `weight` or `bias`.
        places: The names of the network at hand.

    Raises:
        ValueError: There is no such tensor, or there are two; names the module.
    """
    name = strip_prefixes(module)
    whole = name if leaf == "weight" else ""  # a parameter that is no module's weight, such as a table
    found = places.get(f"{name}.{leaf}") or places.get(whole) or places.get(whole.replace(".", "_"), frozenset())
    if len(found) > 1:
        names = " and ".join(sorted(f"{place.component}/{place.native}" for place in found))
        raise ValueError(f"{path}: {module} is ambiguous, it fits {names}")
    if not found:
        raise ValueError(f"{path}: {module}{_what_is_missing(module, places)}")
    (place,) = found
    return place


def refuse_two(path: Path, module: str, others: Iterable[str]) -> None:
    """Check that no other module has changed the tensor that a module changes.

    Raises:
        ValueError: One has; names both.
    """
    if (other := next((other for other in others if other != module), None)) is not None:
        raise ValueError(f"{path}: {module} and {other} are one tensor, given twice")


def _what_is_missing(module: str, places: Places) -> str:
    has = {place.component for found in places.values() for place in found}
    if OF_CONNECTORS.match(f"{module}.") and "connectors" not in has:
        return " changes the connectors, and no --from has them with their config; add LTX-2's file"
    return f" is not in the {' or the '.join(sorted(has)) or 'network'} of the sources"
