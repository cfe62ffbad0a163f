"""LTX-2.5's text encoder written as one file: text model, text projection and tokenizer, as ltx-core 1.2 packs them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from omniforcing_jax.strict_json import loads_object, require
from omniforcing_jax.text.tokenizer import FILE

from .component import LTX2_TEXT
from .formats import gemma
from .lazy_tensor import LazyTensor, wrap_array
from .ltx2_header import refuse_contradiction
from .native_component import NativeComponent
from .single_file_gemma import ASSETS, CONFIG
from .text_version import version_of
from .tokenizer_files import TOKENIZERS

PACKED = "tokenizer_json"  # the key of tokenizer.json
NEEDED = (PACKED, f"{ASSETS}tokenizer_config.json", f"{ASSETS}processor_config.json")  # by ltx-core


def check(natives: Mapping[str, NativeComponent], folder: str) -> None:
    """Check that a weights folder has the parts of such a file.

    Raises:
        ValueError: A part is missing, or the text model is another one; names it.
    """
    for name in ("text", "connectors"):
        there = name in natives and natives[name].component is not None
        require(there, "to", "ltx2-text", f"needs text and connectors, and {folder} has no {name} with a config")
    is_newer = natives["text"].config.is_gemma_4
    require(is_newer, "to", "ltx2-text", f"LTX-2.5's text encoder is Gemma 4, and {folder} has Gemma 3")


def pack_files(text: NativeComponent) -> dict[str, LazyTensor]:
    """Return the files of a text model's tokenizer as rows of bytes, by key."""
    return {key: wrap_array(np.fromfile(path, np.uint8), str(path)) for key, path in _list_files(text).items()}


def _list_files(text: NativeComponent) -> dict[str, Path]:
    names = dict.fromkeys([*TOKENIZERS, *text.extracts])
    paths = [path for name in names if (path := text.folder / name).is_file()]
    return {PACKED if path.name == FILE else f"{ASSETS}{path.name}": path for path in paths}


def make_metadata(text: NativeComponent, fresh: bool) -> dict[str, str]:
    """Return the header's metadata: the source's where it still holds.

    Raises:
        ValueError: The source's config contradicts the text model's, and no fresh one is asked for.
    """
    table = gemma.COMPONENT.namings[LTX2_TEXT].table
    saved = text.metadata if text.naming == LTX2_TEXT else {}
    values = loads_object(saved[CONFIG], f"{text.folder}: {CONFIG} of the source") if CONFIG in saved else {}
    if values and not fresh:
        refuse_contradiction(text, table, values)
        return saved
    values = values | version_of(text.source) | table.write(text.config)
    return {"format": "pt"} | saved | {CONFIG: json.dumps(values)}


def describe(text: NativeComponent) -> list[str]:
    """Say which files are missing that ltx-core asks for."""
    files = _list_files(text)
    missing = [key for key in NEEDED if key not in files]
    return [f"text: ltx-core also reads {', '.join(missing)}, which {text.folder} has not"] if missing else []
