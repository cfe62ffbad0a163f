"""The header of an LTX-2 file to be written: the source's own where it still holds, else put together anew."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .component import LTX2
from .config_table import AnyTable
from .formats.transformer import CONNECTORS
from .native_component import NativeComponent
from .original_keys import read_header_config
from .registry import SECTIONS

# Keys of the connectors in the header's section `transformer`, beside those that CONNECTORS matches.
TEXT_KEYS = ("caption_proj", "text_encoder_norm_type", "connector_norm_output")


def refuse_contradiction(native: NativeComponent, table: AnyTable, source: Mapping[str, Any]) -> None:
    """Compare the config of a component's source with the one that would be written now.

    Args:
        native: The component.
        table: Reads and writes the format's own config.
        source: That config, as the source has it.

    Raises:
        ValueError: They differ; names the folder and the key.
    """
    if (what := _differ(table.write(table.read(source)), table.write(native.config), "")) is not None:
        rule = "convert without overrides, or write a new header with --fresh-header"
        raise ValueError(f"{native.folder}: the source's header contradicts the config, {what}; {rule}")


def _differ(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> str | None:
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if (what := _differ(a, b, f"{path}{key}.")) is not None:
                return what
        elif a != b:
            return f"{path}{key}={a!r} there and {b!r} here"
    return None


def merge_header(natives: Sequence[NativeComponent], fresh: bool) -> dict[str, str]:
    """Put the header's metadata together.

    Args:
        natives: The components that are written, at least one.
        fresh: Write the sections of components with a table from their configs, even where the source's header is
            known.

    Raises:
        ValueError: LTX-2's format cannot express a component, or two of them need one key; names what.
    """
    saved = [native.metadata if native.naming == LTX2 else {} for native in natives]
    if not fresh and "config" in saved[0] and all(metadata == saved[0] for metadata in saved):
        return saved[0]
    sections: dict[str, dict[str, Any]] = {}
    for native, metadata in zip(natives, saved, strict=True):
        header = dict(read_header_config(native.folder, metadata) or {})
        for name, values in _sections_of(native, header).items():
            section = sections.setdefault(name, {})
            for key in [key for key in values if section.get(key, values[key]) != values[key]]:
                rule = "a header has room for one; --rotary permutes both, --components leaves one out"
                raise ValueError(f"{native.name}: {key}={values[key]!r}, the transformer has {section[key]!r}; {rule}")
            section |= values
    others = {key: text for metadata in saved for key, text in metadata.items() if key != "config"}
    return others | {"config": json.dumps(sections)}


def _sections_of(native: NativeComponent, header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's sections of the header: what is written now over what its source's header said."""
    if native.component is None and native.name in SECTIONS:
        return {name: header[name] for name in [SECTIONS[native.name]] if name in header}
    written = {} if native.component is None else native.component.namings[LTX2].table.write(native.config)
    kept = {name: header[name] for name in written if name in header}
    if native.name in ("transformer", "connectors"):  # both are in one section
        values, is_connectors = header.get("transformer", {}), native.name == "connectors"
        kept = {"transformer": {key: value for key, value in values.items() if _is_connectors(key) == is_connectors}}
    return {name: kept.get(name, {}) | written.get(name, {}) for name in kept | written}


def _is_connectors(key: str) -> bool:
    return CONNECTORS.fullmatch(key) is not None or key.startswith(TEXT_KEYS)
