"""How much memory a request needs, and whether it is free."""

import math

import jax
from jaxtyping import DTypeLike, PyTree

from omniforcing_jax.io import machine
from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.pipeline.pipeline import PipelineConfig, abstract_pipeline

GIB, MIB = 2**30, 2**20


def count_bytes(tree: PyTree) -> int:
    """Count the bytes of all arrays of a tree, or of all its `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_memory(config: PipelineConfig, dtype: DTypeLike, loaded: bool, working: dict[str, int]) -> None:
    """Refuse work that does not fit into memory.

    Args:
        config: Configs of the weights.
        dtype: Type that the weights are loaded in.
        loaded: Whether they are in memory already.
        working: Bytes that are needed besides the weights, by their use.

    Raises:
        ValueError: If more memory is needed than is free; has the figures.
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
    """Refuse work that needs more memory than is free.

    Args:
        needed: Bytes by their use.

    Raises:
        ValueError: If more memory is needed than is free; has the figures.
    """
    free = machine.free_bytes()
    total = sum(needed.values())
    if free is not None and total > free:
        uses = ", ".join(f"{name} {_format_bytes(size)}" for name, size in needed.items())
        raise ValueError(
            f"at least {_format_bytes(total)} of memory are needed ({uses}), {_format_bytes(free)} are free"
        )


def _format_bytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def score_bytes(config: PipelineConfig, rows: int, queries: int, keys: int) -> int:
    """Count the bytes of one layer's largest attention scores, which are float32 [rows, heads, queries, keys]."""
    return 4 * rows * config.model.video.heads * queries * keys
