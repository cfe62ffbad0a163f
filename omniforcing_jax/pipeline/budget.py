"""How much memory a request needs, and whether it is free."""

import jax
from jaxtyping import DTypeLike, PyTree

from omniforcing_jax.io import machine
from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.pipeline.pipeline import PipelineConfig, abstract_pipeline

GIB, MIB = 2**30, 2**20


def count_bytes(tree: PyTree) -> int:
    """Sum the bytes of arrays, or of shapes that have a type."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_memory(config: PipelineConfig, dtype: DTypeLike, loaded: bool, working: dict[str, int]) -> None:
    """Refuse what cannot fit.

    Args:
        config: The weights.
        dtype: The type that they are loaded in.
        loaded: Whether they are in memory already.
        working: Bytes of everything else, by what it is.

    Raises:
        ValueError: with the figures, if more memory is needed than free.
    """
    if loaded:
        check_free(working)
        return
    shapes = abstract_pipeline(config, dtype)
    network = count_bytes(shapes.transformer)
    mesh = mesh_in_use()
    cut = 1 if mesh is None else mesh.shape["fsdp"] * mesh.shape["tensor"]
    check_free({"weights": network // cut + count_bytes(shapes) - network, **working})


def check_free(needed: dict[str, int]) -> None:
    """Refuse what needs more memory than is free: bytes, by what they are for.

    Raises:
        ValueError: with the figures.
    """
    free = machine.free_bytes()
    total = sum(needed.values())
    if free is not None and total > free:
        parts = ", ".join(f"{name} {_say_bytes(size)}" for name, size in needed.items())
        raise ValueError(f"at least {_say_bytes(total)} of memory are needed ({parts}), {_say_bytes(free)} are free")


def _say_bytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def score_bytes(config: PipelineConfig, rows: int, queries: int, keys: int) -> int:
    """Count the bytes of one layer's largest attention scores, which are float32 [rows, heads, queries, keys]."""
    return 4 * rows * config.model.video.heads * queries * keys
