"""The header of an LTX-2 file that is written: the source's own where it still holds, else put together anew."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from converters.checkpoint import read_header_config
from converters.component import LTX2, Naming
from converters.own import Own
from converters.registry import SECTIONS
from converters.transformer import CONNECTORS

TEXT_PATH = ("caption_proj", "text_encoder_norm_type", "connector_norm_output")  # of the connectors, in `transformer`


def contradiction(naming: Naming, theirs: Mapping[str, Any], config: Any) -> str | None:
    """Say where a format's own config differs from what we would write now; None where it says the same."""
    return _differ(naming.write_config(naming.read_config(theirs)), naming.write_config(config), "")


def _differ(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> str | None:
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if (what := _differ(a, b, f"{path}{key}.")) is not None:
                return what
        elif a != b:
            return f"{path}{key}={a!r} there and {b!r} here"
    return None


def merge_header(owns: Iterable[Own], fresh: bool) -> dict[str, str]:
    """Put the header's metadata together.

    Args:
        owns: The components that are written.
        fresh: Write what has a table from our configs, also where the source's header is at hand.

    Raises:
        ValueError: LTX-2's format cannot express a component; names what.
    """
    owns = list(owns)
    saved = [own.metadata if own.naming == LTX2 else {} for own in owns]
    if not fresh and "config" in saved[0] and all(metadata == saved[0] for metadata in saved):
        return saved[0]
    sections: dict[str, Any] = {}
    for own, metadata in zip(owns, saved, strict=True):
        header = dict(read_header_config(own.place, metadata) or {})
        for name, values in _sections_of(own, header).items():
            section = sections.setdefault(name, {})
            for key in [key for key in values if section.get(key, values[key]) != values[key]]:
                rule = "a header has room for one; --rotary permutes both, --components leaves one out"
                raise ValueError(f"{own.name}: {key}={values[key]!r}, the transformer has {section[key]!r}; {rule}")
            section |= values
    others = {key: text for metadata in saved for key, text in metadata.items() if key != "config"}
    return others | {"config": json.dumps(sections)}


def _sections_of(own: Own, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a component has to say in the header, over what its source's header said there."""
    if own.component is None and own.name in SECTIONS:
        return {name: header[name] for name in [SECTIONS[own.name]] if name in header}
    written = {} if own.component is None else own.component.namings[LTX2].write_config(own.config)
    kept = {name: header[name] for name in written if name in header}
    if own.name in ("transformer", "connectors"):  # both are in one section
        values, theirs = header.get("transformer", {}), own.name == "connectors"
        kept = {"transformer": {key: value for key, value in values.items() if _is_connectors(key) == theirs}}
    return {name: kept.get(name, {}) | written.get(name, {}) for name in kept | written}


def _is_connectors(key: str) -> bool:
    return CONNECTORS.fullmatch(key) is not None or key.startswith(TEXT_PATH)
