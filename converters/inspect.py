"""Describe a path for people: components, tensors, configs, and what can be done with it."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io import manifest, weights
from omniforcing_jax.io.tensor_file import NAMES
from omniforcing_jax.text.tokenizer import FILE

from . import text_projection
from .lazy_tensor import LazyTensor
from .missing_config import complete
from .native_component import NativeComponent, is_weights_folder, open_weights_folder
from .open_source import list_components
from .overrides import Overrides
from .quantise import describe
from .source_component import SourceComponent

NEEDED = ("transformer", "video_vae", "audio_vae", "vocoder")  # by any command that makes picture and sound
CONFIGS = ("config", "gemma_config")  # of a header; what they mean is printed
NUMBER = re.compile(r"(?<![^./_])\d+(?![^./_])")


def inspect(path: Path, overrides: Overrides) -> list[str]:
    """Describe a weights folder, or any source that can be converted.

    Raises:
        ValueError: In one line, if it is missing, damaged or of no known format.
    """
    if manifest.is_unfinished(path) or is_weights_folder(path):
        return list(_inspect_folder(path))
    sources = [_complete(source, overrides) for source in list_components(path, overrides)]
    return [line for source in sources for line in _inspect_source(source)]


def _complete(source: SourceComponent, overrides: Overrides) -> SourceComponent:
    """Find a config that the file lacks, or note what `convert` needs."""
    if text_projection.is_part(source):
        return text_projection.pass_through(source)
    try:
        return complete(source, None, overrides)
    except ValueError as error:
        return dataclasses.replace(source, notes=(*source.notes, str(error).removeprefix(f"{source.where}: ")))


def verify(folder: Path) -> list[str]:
    """Compare all bytes of a weights folder, and of those that it shares components with, with their manifests.

    Raises:
        ValueError: A folder has no manifest, or a file is missing or damaged; names it.
    """
    folders = dict.fromkeys([folder, *(native.folder.parent for native in open_weights_folder(folder).values())])
    return [f"{each}: {line}" for each in folders for line in manifest.verify(each)]


def _inspect_source(source: SourceComponent) -> Iterator[str]:
    passed = ", without a table or a config to read it by: all pass through untouched"
    if source.component is not None:
        keys = [key for key in source.tensors if source.component.namings[source.naming].is_passed(key)]
        passed = f", {len(keys)} of them pass through untouched" if keys else ""
    yield f"{source.name}: {source.format}, {source.where}, {_count(source.tensors)}{passed}"
    yield from (f"  {note}" for note in source.notes)
    yield from (f"  {key}: {text}" for key, text in source.metadata.items() if key not in CONFIGS)
    if source.component is not None:
        yield from _list_config(source.config.to_dict())
    yield from _list_tensors(source.tensors)


def _inspect_folder(folder: Path) -> Iterator[str]:
    manifest.read(folder)
    top, natives = weights.read_config(folder), open_weights_folder(folder)
    yield f"{folder}: weights folder '{top.get('name')}', resolution {top.get('resolution')}"
    yield from _list_config({"sampler": top.get("sampler")})
    for name, native in natives.items():
        source = f" from {native.source['format']} ({native.source['file']})" if native.source else ""
        yield f"{name}: {native.folder}{source}, {_count(native.tensors or {})}"
        if isinstance(native.config, ModelConfig) and native.config.eight_bits is not None:
            yield f"  {describe(native.config.eight_bits, native.config.layers)}, see eight_bits"
        if native.tensors is not None:
            yield from _list_config(weights.read_config(native.folder))
            yield from _list_tensors(native.tensors)
        if native.passed:
            yield f"  {_count(native.passed)} passed through untouched:"
            yield from _list_tensors(native.passed)
    yield from _list_commands(top, natives)


def _list_commands(top: Mapping[str, Any], natives: Mapping[str, NativeComponent]) -> list[str]:
    """Say which commands a weights folder can run, and what is missing for the others."""

    def missing(names: Sequence[str]) -> list[str]:
        return [f"no {name}" for name in names if name not in natives or natives[name].tensors is None]

    is_student = "sampler" in top
    stream = missing(NEEDED) + ([] if is_student else ["no sampler section: it is a teacher"])
    sample = missing(NEEDED) + (["a sampler section: it is a student"] if is_student else [])
    prompts = missing(("text", "connectors"))
    if "text" in natives and natives["text"].is_trained_here:  # chime's text encoder needs no connectors
        prompts = []
    elif "text" in natives and not (natives["text"].folder / FILE).is_file():
        prompts.append(f"no text/{FILE}")
    passed = [native for native in natives.values() if native.tensors is None]
    return [
        f"stream: {_verdict(stream)}",
        f"sample: {_verdict(sample)}",
        f"prompts: {_verdict(prompts)}{'; --contexts takes their place' if prompts else ''}",
        f"export: to the format it came from{'' if passed else ', and to others'}",
    ]


def _verdict(missing: Sequence[str]) -> str:
    return f"cannot run: {', '.join(missing)}" if missing else "can run"


def _count(tensors: Mapping[str, LazyTensor]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[NAMES.get(tensor.dtype, str(tensor.dtype))] += tensor.nbytes // tensor.dtype.itemsize
    values = ", ".join(f"{count:,} values in {name}" for name, count in sizes.items())
    return f"{len(tensors)} tensors" + (f" ({values})" if values else "")


def _list_config(values: Any) -> Iterator[str]:
    yield from (f"  {line}" for line in json.dumps(values, indent=2).splitlines())


def _list_tensors(tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    """List tensors; those of several layers are one line."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for key, tensor in tensors.items():
        kind = (NUMBER.sub("*", key), NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.shape)
        groups.setdefault(kind, []).append(key)
    for (pattern, dtype, shape), keys in groups.items():
        name, times = (keys[0], "") if len(keys) == 1 else (pattern, f"  x{len(keys)}")
        yield f"  {name}  {dtype} {list(shape)}{times}"
