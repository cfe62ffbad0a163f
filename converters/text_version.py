"""Which text model a network of LTX-2 was trained with, as its header says it, compared with the one beside it.

A folder that is converted into may have one of the two already; source.json there says what the header said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing_jax.io import weights
from omniforcing_jax.strict_json import loads_object, read_object
from omniforcing_jax.text.gemma_config import GemmaConfig

from .component import LTX2
from .native_component import SOURCE, place_of
from .source_component import SourceComponent

MADE_FOR = "gemma_source_checkpoint"  # of the network's header: the text model that it was trained with
VERSION = "gemma_version"  # of the text model's config
NETWORKS = ("transformer", "connectors")


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What is known of a component: its place, its naming, its header, its config in its source, its native config."""

    where: str
    naming: str | None
    metadata: Mapping[str, str]
    model_config: Mapping[str, Any]
    config: Any


def version_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the version of a text model that a source.json says, as a part of a config; empty where it says none."""
    config = source.get("config") or {}
    return {VERSION: config[VERSION]} if VERSION in config else {}


def check_text_model(sources: Mapping[str, SourceComponent], folder: Path) -> None:
    """Check that a network and connectors of LTX-2 were trained with the text model beside them, as ltx-core 1.2 does.

    Args:
        sources: What is converted, by component.
        folder: The weights folder that it is converted into; what it has of other components stays.

    Raises:
        ValueError: They were trained with another one, or before there was Gemma 4; names both places.
    """
    if not {"text", *NETWORKS} & sources.keys():
        return
    said = {name: _of_source(each) for name, each in sources.items()}
    text = said.get("text") or _of_folder(folder, "text")
    if text is None or not isinstance(text.config, GemmaConfig):
        return
    for name in NETWORKS:
        network = said.get(name) or _of_folder(folder, name)
        if network is not None and network.naming == LTX2 and (name in sources or "text" in sources):
            _check_header(network, text, text.config)


def _of_source(source: SourceComponent) -> _Said:
    return _Said(
        where=source.where,
        naming=source.naming,
        metadata=source.metadata,
        model_config=source.model_config or {},
        config=source.config,
    )


def _of_folder(folder: Path, name: str) -> _Said | None:
    """Read what source.json says of a component of a weights folder; None for one that was not converted."""
    place = place_of(folder, name)
    if not (place / SOURCE).is_file():
        return None
    source = read_object(place / SOURCE)
    return _Said(
        where=str(place),
        naming=source.get("naming"),
        metadata=source.get("metadata") or {},
        model_config=source.get("config") or {},
        config=_read_gemma(place) if name == "text" else None,
    )


def _read_gemma(folder: Path) -> GemmaConfig | None:
    if not (folder / weights.CONFIG).is_file():
        return None
    values = weights.read_config(folder)
    try:
        return GemmaConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{folder / weights.CONFIG}: {error}") from None


def _check_header(network: _Said, text: _Said, config: GemmaConfig) -> None:
    found, where = text.model_config.get(VERSION), f"the header of {network.where}"
    if MADE_FOR in network.metadata:
        wanted = loads_object(network.metadata[MADE_FOR], f"{where}: {MADE_FOR}").get(VERSION)
        if wanted != found:
            raise ValueError(f"{text.where}: its gemma_version is {found!r}, {where} says {wanted!r}")
    elif config.is_gemma_4 and "config" in network.metadata:
        rule = (
            f"{where} has no {MADE_FOR}, so its text model is Gemma 3; to move to LTX-2.5 name both files with --from"
        )
        raise ValueError(f"{text.where}: is Gemma 4; {rule}")
