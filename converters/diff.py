"""Where two checkpoints of one kind differ: keys, shapes, types, values, configs."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.choices import Choices
from converters.inspect import is_own
from converters.own import open_own
from converters.piece import Piece, pieces_of
from converters.sources import find_parts
from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import as_bytes


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: its tensors and its configs, by name."""

    tensors: Mapping[str, Piece]
    configs: Mapping[str, Any]


def open_side(path: Path, choices: Choices) -> Side:
    """Open a weights folder of ours, or a source.

    Raises:
        ValueError: In one line, if it is missing, damaged or of no known format.
    """
    tensors: dict[str, Piece] = {}
    configs: dict[str, Any] = {}
    if is_own(path):
        configs["folder"] = weights.read_config(path)
        for name, own in open_own(path).items():
            for file in (own.model, own.passed):
                tensors |= {f"{name}/{key}": piece for key, piece in (pieces_of(file) if file else {}).items()}
            if own.config is not None and own.component is not None:
                configs[name] = own.component.write_own(own.config)
        return Side(tensors=tensors, configs=configs)
    parts = find_parts(path, choices)
    for part in parts:
        mark = "" if len({each.naming for each in parts}) == 1 and part.model_config is None else f"{part.name}/"
        tensors |= {mark + key: piece for key, piece in part.tensors.items()}
        if part.model_config is not None:
            configs[part.name] = part.model_config
        header = dict(part.metadata)
        configs["header"] = header | ({"config": json.loads(header["config"])} if "config" in header else {})
    return Side(tensors=tensors, configs=configs)


def diff(first: Path, second: Path, choices: Choices) -> list[str]:
    """List what differs, a line each; an empty list where nothing does.

    Raises:
        ValueError: In one line: one cannot be opened, or they are not of one kind.
    """
    if is_own(first) != is_own(second):
        ours, other = (first, second) if is_own(first) else (second, first)
        raise ValueError(f"{ours} is a weights folder of ours and {other} is not: convert or export one of them first")
    a, b = open_side(first, choices), open_side(second, choices)
    lines = [f"config {line}" for line in _configs(a.configs, b.configs, "")]
    lines += [f"only in {first}: {key}" for key in a.tensors if key not in b.tensors]
    lines += [f"only in {second}: {key}" for key in b.tensors if key not in a.tensors]
    for key, piece in a.tensors.items():
        if key in b.tensors and (line := _tensor(piece, b.tensors[key])) is not None:
            lines.append(f"{key}: {line}")
    return lines


def _configs(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _configs(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield f"{path}: {a!r} and {b!r}"


def _tensor(a: Piece, b: Piece) -> str | None:
    """Say how two tensors differ; None where their bytes are the same."""
    if a.shape != b.shape:
        return f"shape {a.shape} and {b.shape}"
    kinds = "" if a.dtype == b.dtype else f"{a.dtype} and {b.dtype}, "
    largest, differing = 0.0, 0
    for x, y in zip(_parts(a), _parts(b), strict=True):
        if not kinds and as_bytes(x) == as_bytes(y):
            continue
        off = np.abs(x.astype(np.float64) - y.astype(np.float64))
        differing += int(np.count_nonzero(~(off == 0)))
        largest = max(largest, float(np.nan_to_num(off, nan=np.inf).max(initial=0.0)))
    if not kinds and not differing:
        return None
    return f"{kinds}{differing} of {int(np.prod(a.shape))} values differ, by {largest:.3g} at most"


def _parts(piece: Piece) -> Iterator[np.ndarray]:
    """Cut a tensor into parts of equal numbers of values, whatever its type."""
    flat = np.ascontiguousarray(piece.load()).reshape(-1)
    step = 1 << 20
    for begin in range(0, flat.size, step):
        yield flat[begin : begin + step]
