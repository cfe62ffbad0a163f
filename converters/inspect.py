"""What is inside a path, for people: components, tensors, configs, and what can be done with it."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.choices import Choices
from converters.own import Own, open_own
from converters.part import Part
from converters.piece import Piece, pieces_of
from converters.sources import find_parts
from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import NAMES
from omniforcing_jax.text.tokenizer import FILE

NEEDED = ("transformer", "video_vae", "audio_vae", "vocoder")  # by any command that makes picture and sound
NUMBER = re.compile(r"(?<![^./_])\d+(?![^./_])")


def is_own(path: Path) -> bool:
    """Whether a path is a weights folder of ours."""
    if not (path / weights.CONFIG).is_file():
        return False
    values = weights.read_config(path)
    return "format" in values and "_class_name" not in values


def inspect(path: Path, choices: Choices) -> list[str]:
    """Describe a weights folder of ours, or any source that can be converted.

    Raises:
        ValueError: In one line, if it is missing, damaged or of no known format.
    """
    if is_own(path):
        return list(_inspect_own(path))
    return [line for part in find_parts(path, choices) for line in _inspect_part(part)]


def _inspect_part(part: Part) -> Iterator[str]:
    if part.component is not None:
        passed = [key for key in part.tensors if part.component.namings[part.naming].is_passed(key)]
        through = f", {len(passed)} of them go through untouched" if passed else ""
    else:
        through = ", without a table or a config to read it by: all go through untouched"
    yield f"{part.name}: {part.format}, {part.where}, {_count(part.tensors)}{through}"
    yield from (f"  {note}" for note in part.notes)
    yield from (f"  {key}: {text}" for key, text in part.metadata.items() if key != "config")
    if part.component is not None:
        yield from _config(part.component.write_own(part.config))
    yield from _tensors(part.tensors)


def _inspect_own(folder: Path) -> Iterator[str]:
    top, owns = weights.read_config(folder), open_own(folder)
    yield f"{folder}: weights folder '{top.get('name')}', resolution {top.get('resolution')}"
    yield from _config({"sampler": top.get("sampler")})
    for name, own in owns.items():
        pieces = {} if own.model is None else pieces_of(own.model)
        source = f" from {own.source['format']} ({own.source['file']})" if own.source else ""
        yield f"{name}: {own.place}{source}, {_count(pieces)}"
        if own.model is not None:
            yield from _config(weights.read_config(own.place))
        yield from _tensors(pieces)
        if own.passed is not None:
            yield f"  {_count(pieces_of(own.passed))} went through untouched:"
            yield from _tensors(pieces_of(own.passed))
    yield from runnable(top, owns)


def runnable(top: Mapping[str, Any], owns: Mapping[str, Own]) -> list[str]:
    """Say which commands a weights folder can run, and what the others miss."""
    missing = [name for name in NEEDED if name not in owns or owns[name].model is None]
    student = "sampler" in top
    lack = [f"no {name}" for name in missing]
    stream = lack + ([] if student else ["no sampler section: it is a teacher"])
    sample = lack + (["a sampler section: it is a student"] if student else [])
    text = [f"no {name}" for name in ("text", "connectors") if name not in owns or owns[name].model is None]
    if "text" in owns and owns["text"].is_made_here:  # chime's words need no connectors
        text = []
    elif "text" in owns and not (owns["text"].place / FILE).is_file():
        text.append(f"no text/{FILE}")
    through = [own for own in owns.values() if own.model is None]
    return [
        f"stream: {_verdict(stream)}",
        f"sample: {_verdict(sample)}",
        f"prompts: {_verdict(text)}{'; --contexts takes their place' if text else ''}",
        f"export: to the format it came from{'' if through else ', and to others'}",
    ]


def _verdict(lack: Sequence[str]) -> str:
    return f"cannot run: {', '.join(lack)}" if lack else "can run"


def _count(tensors: Mapping[str, Piece]) -> str:
    sizes: Counter[str] = Counter()
    for piece in tensors.values():
        sizes[NAMES.get(piece.dtype, str(piece.dtype))] += piece.nbytes // piece.dtype.itemsize
    values = ", ".join(f"{count:,} values in {name}" for name, count in sizes.items())
    return f"{len(tensors)} tensors" + (f" ({values})" if values else "")


def _config(values: Any) -> Iterator[str]:
    yield from (f"  {line}" for line in json.dumps(values, indent=2).splitlines())


def _tensors(tensors: Mapping[str, Piece]) -> Iterator[str]:
    """List tensors, those of several layers in one line."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for key, piece in tensors.items():
        kind = (NUMBER.sub("*", key), NAMES.get(piece.dtype, str(piece.dtype)), piece.shape)
        groups.setdefault(kind, []).append(key)
    for (pattern, dtype, shape), keys in groups.items():
        name, times = (keys[0], "") if len(keys) == 1 else (pattern, f"  x{len(keys)}")
        yield f"  {name}  {dtype} {list(shape)}{times}"
