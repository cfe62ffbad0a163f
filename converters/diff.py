"""Where two checkpoints of one kind differ: keys, shapes, types, values, configs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omniforcing_jax.io import weights
from omniforcing_jax.io.tensor_file import as_bytes

from .lazy_tensor import LazyTensor
from .native_component import is_weights_folder, open_weights_folder
from .open_source import list_components
from .original_keys import read_header_config
from .overrides import Overrides

VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Contents:
    """One of the two: its tensors and its configs, by name."""

    tensors: Mapping[str, LazyTensor]
    configs: Mapping[str, Any]


def diff(first: Path, second: Path, overrides: Overrides) -> list[str]:
    """List what differs, a line each; an empty list where nothing does.

    Raises:
        ValueError: In one line: one cannot be opened, or they are not of one kind.
    """
    if is_weights_folder(first) != is_weights_folder(second):
        folder, other = (first, second) if is_weights_folder(first) else (second, first)
        raise ValueError(f"{folder} is a weights folder and {other} is not: convert or export one of them first")
    a, b = (_read_folder(p) if is_weights_folder(p) else _read_source(p, overrides) for p in (first, second))
    lines = [f"config {line}" for line in _compare_configs(a.configs, b.configs, "")]
    lines += [f"only in {first}: {key}" for key in a.tensors if key not in b.tensors]
    lines += [f"only in {second}: {key}" for key in b.tensors if key not in a.tensors]
    for key, tensor in a.tensors.items():
        if key in b.tensors and (line := _compare_tensors(tensor, b.tensors[key])) is not None:
            lines.append(f"{key}: {line}")
    return lines


def _read_folder(path: Path) -> Contents:
    tensors: dict[str, LazyTensor] = {}
    configs: dict[str, Any] = {"folder": weights.read_config(path)}
    for name, native in open_weights_folder(path).items():
        for each in (native.tensors or {}, native.passed):
            tensors |= {f"{name}/{key}": tensor for key, tensor in each.items()}
        if native.config is not None and native.component is not None:
            configs[name] = native.config.to_dict()
    return Contents(tensors=tensors, configs=configs)


def _read_source(path: Path, overrides: Overrides) -> Contents:
    tensors: dict[str, LazyTensor] = {}
    configs: dict[str, Any] = {}
    sources = list_components(path, overrides)
    is_one_file = len({source.naming for source in sources}) == 1
    for source in sources:
        mark = "" if is_one_file and source.model_config is None else f"{source.name}/"
        tensors |= {mark + key: tensor for key, tensor in {**source.tensors, **source.extracts}.items()}
        if source.model_config is not None:
            configs[source.name] = source.model_config
        header = read_header_config(path, source.metadata)
        configs["header"] = {**source.metadata, **({} if header is None else {"config": header})}
    return Contents(tensors=tensors, configs=configs)


def _compare_configs(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _compare_configs(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield f"{path}: {a!r} and {b!r}"


def _compare_tensors(a: LazyTensor, b: LazyTensor) -> str | None:
    """Return how two tensors differ, in words; None where their bytes are the same."""
    if a.shape != b.shape:
        return f"shape {a.shape} and {b.shape}"
    types = "" if a.dtype == b.dtype else f"{a.dtype} and {b.dtype}, "
    largest, differing = 0.0, 0
    for x, y in zip(_cut(a), _cut(b), strict=True):
        if not types and as_bytes(x) == as_bytes(y):
            continue
        off = np.abs(x.astype(np.float64) - y.astype(np.float64))
        differing += int(np.count_nonzero(~(off == 0)))
        largest = max(largest, float(np.nan_to_num(off, nan=np.inf).max(initial=0.0)))
    if not types and not differing:
        return None
    return f"{types}{differing} of {int(np.prod(a.shape))} values differ, by {largest:.3g} at most"


def _cut(tensor: LazyTensor) -> Iterator[np.ndarray]:
    """Cut a tensor into pieces of equal numbers of values, whatever its type."""
    flat = np.ascontiguousarray(tensor.load()).reshape(-1)
    for begin in range(0, flat.size, VALUES_AT_ONCE):
        yield flat[begin : begin + VALUES_AT_ONCE]
