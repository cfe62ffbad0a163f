"""LoRAs at run time: the files and strengths of a request, read, and put beside the network of a loaded pipeline."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.atomic_write import AnyPath, hash_file
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.model.lora import Factors, attach_loras, detach_loras, join_factors, set_strengths
from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.pipeline.converters_room import import_converters
from omniforcing_jax.pipeline.pipeline import Pipeline, with_same_weights
from omniforcing_jax.strict_json import require

GivenLoras = Sequence[tuple[AnyPath, float | int]]
"""Files and their strengths, as a request has them."""

LoraFiles = tuple[tuple[str, float], ...]
"""The same as values of JSON, with absolute paths."""


class Loras(NamedTuple):
    """LoRAs that were read for a network.

    Attributes:
        files: Files and strengths.
        hashes: The hash of each file.
        headers: The metadata of each file's header.
        factors: Their changes.
    """

    files: LoraFiles
    hashes: tuple[str, ...]
    headers: tuple[Mapping[str, str], ...]
    factors: Factors

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strength of each file."""
        return tuple(strength for _, strength in self.files)

    def working(self, dtype: DTypeLike) -> dict[str, int]:
        """Bytes of memory that they take in a type, by their use."""
        values = sum(each.down.size + each.up.size for each in self.factors.values())
        return {"LoRAs": values * jnp.dtype(dtype).itemsize} if self.files else {}


NO_LORAS = Loras((), (), (), {})


class Attached(NamedTuple):
    """A loaded pipeline with LoRAs beside its network, and these LoRAs."""

    pipeline: Pipeline
    loras: Loras


def check_loras(loras: GivenLoras) -> LoraFiles:
    """Return files, by their absolute paths, and strengths as values of JSON.

    Raises:
        ValueError: A strength is not finite, or a file is given twice.
    """
    files = tuple((os.path.abspath(file), float(strength)) for file, strength in loras)
    for file, strength in files:
        require(math.isfinite(strength), f"lora {file}: strength", strength, "must be a finite number")
    names = [file for file, _ in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, "lora", twice, "is given twice")
    return files


def read_loras(config: ModelConfig, loras: GivenLoras, known: Loras = NO_LORAS) -> Loras:
    """Read LoRAs for a network.

    Args:
        config: The network.
        loras: Files and strengths.
        known: LoRAs that were read before. If the files are the same, they are not read again.

    Raises:
        ValueError: As `check_loras`; a file cannot be used beside these weights (names file and key); or there is a
            mesh.
    """
    files = check_loras(loras)
    if not files:
        return NO_LORAS
    names = [file for file, _ in files]
    if names == [file for file, _ in known.files]:
        return known._replace(files=files)
    require(mesh_in_use() is None, "lora", names[0], "a network on a mesh has none; fuse it with `convert --lora`")
    paths = [import_converters("lora.keys").find_file(Path(name)) for name in names]
    read = import_converters("lora.beside").read_beside
    factors = join_factors([read(config, path) for path in paths])
    headers = tuple(open_tensors(path).metadata for path in paths)
    return Loras(files=files, hashes=tuple(map(hash_file, paths)), headers=headers, factors=factors)


def with_loras(pipeline: Pipeline, loras: Loras, dtype: DTypeLike) -> Pipeline:
    """Put LoRAs beside the network of a pipeline that has none; `dtype` is the factors' type."""
    if not loras.files:
        return pipeline
    return with_same_weights(pipeline, attach_loras(pipeline.transformer, loras.factors, loras.strengths, dtype))


def change_loras(pipeline: Pipeline, old: Loras, new: Loras, dtype: DTypeLike) -> Pipeline:
    """Replace the LoRAs of a pipeline; if the files are the same, only their strengths are replaced."""
    if new.files and new.factors is old.factors:
        return with_same_weights(pipeline, set_strengths(pipeline.transformer, new.factors, new.strengths))
    return with_loras(with_same_weights(pipeline, detach_loras(pipeline.transformer)), new, dtype)
