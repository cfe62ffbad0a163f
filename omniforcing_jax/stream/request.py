"""What a request must satisfy before any work is done for it, and what it resolves to.

Shared by the stream and the clip: which weights, how long, how large, which text, how much memory. Every refusal is a
ValueError of one line that names the culprit.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, PyTree

from omniforcing_jax import machine
from omniforcing_jax import mesh as meshes
from omniforcing_jax.config import SamplerConfig, require
from omniforcing_jax.nn.sharding import mesh_in_use
from omniforcing_jax.pipeline import (
    Pipeline,
    PipelineConfig,
    abstract_pipeline,
    find_text,
    load_pipeline,
    read_pipeline_config,
)
from omniforcing_jax.tensor_file import open_tensors
from omniforcing_jax.text.contexts import Contexts
from omniforcing_jax.text.encoder import Encoder
from omniforcing_jax.text.store import ContextStore, is_store, keep, open_store
from omniforcing_jax.text.words import encode, tokenise

Weights = str | os.PathLike[str] | Pipeline
Path = str | os.PathLike[str]
GIB, MIB = 2**30, 2**20


TextSource = Path | Contexts | ContextStore | None
"""Contexts as arrays or by prompt, a file of either, or None: the weights' own text encoder."""


def config_of(weights: Weights) -> PipelineConfig:
    """Read the configs of a weights folder, or take those of a loaded pipeline."""
    return weights.config if isinstance(weights, Pipeline) else read_pipeline_config(weights)


def load(weights: Weights, config: PipelineConfig, dtype: DTypeLike) -> Pipeline:
    """Load a weights folder, or take a pipeline that is loaded already."""
    return weights if isinstance(weights, Pipeline) else load_pipeline(weights, config, dtype)


def student_sampler(config: PipelineConfig) -> SamplerConfig:
    """Return what makes these weights a causal student.

    Raises:
        ValueError: if they are a bidirectional teacher.
    """
    if config.sampler is None:
        raise ValueError(
            f"{config.name!r} is a bidirectional teacher (its config has no sampler section), which cannot stream: "
            "use the command `sample`"
        )
    return config.sampler


def refuse_student(config: PipelineConfig) -> None:
    """Refuse weights that are a causal student.

    Raises:
        ValueError: if they are.
    """
    if config.sampler is not None:
        raise ValueError(
            f"{config.name!r} is a causal student (its config has a sampler section), which has no whole-clip form: "
            "use the command `stream`"
        )


def check_mesh(config: PipelineConfig) -> None:
    """Refuse weights that the mesh which is set cannot cut.

    Raises:
        ValueError: if it cannot; names what does not divide.
    """
    mesh = meshes.mesh_that_is_set()
    if mesh is not None:
        meshes.config_of(mesh).check_network(config.model)


def adjust_sampler(sampler: SamplerConfig, window: int | None, steps: int | None) -> SamplerConfig:
    """Apply a request's own window and number of denoise steps.

    Fewer steps keep the first sigma and thin out the others evenly: a student knows only the noise levels that it was
    trained on.

    Raises:
        ValueError: if the window is longer than the horizon, or there are more steps than trained ones.
    """
    if window is not None:
        sampler = dataclasses.replace(sampler, window=window)
    if steps is not None:
        require(1 <= steps <= sampler.steps, "steps", steps, f"must be between 1 and {sampler.steps}, the trained ones")
        kept = np.round(np.arange(steps) * sampler.steps / steps).astype(int)
        sampler = dataclasses.replace(sampler, sigmas=(*(sampler.sigmas[i] for i in kept), 0.0))
    return sampler


def open_source(source: TextSource) -> TextSource:
    """Open a file that is a store of contexts by prompt; anything else comes back as it is."""
    if source is None or isinstance(source, Contexts | ContextStore) or not is_store(open_tensors(source)):
        return source
    return open_store(source)


def check_text(
    config: PipelineConfig, prompts: Sequence[str], source: TextSource, weights: Weights | None = None
) -> None:
    """Check that there is a text encoder that knows every word, or contexts that fit.

    Args:
        config: The weights' configs.
        prompts: What is to be read.
        source: Contexts in place of the text encoder.
        weights: Where the text encoder lies, if it lies on disk.

    Raises:
        ValueError: if not; unknown words and prompts are named with the nearest known ones.
    """
    source = open_source(source)
    if isinstance(source, ContextStore):
        rule = f"{config.name!r} reads contexts of {config.context_widths} channels"
        require(source.widths == config.context_widths, source.where, source.widths, rule)
        source.check(prompts)
    elif source is not None:
        given = source._asdict() if isinstance(source, Contexts) else open_tensors(source).entries
        where = "contexts" if isinstance(source, Contexts) else str(source)
        _check_shapes(config, {name: x.shape for name, x in given.items() if x is not None}, len(prompts), where)
    elif config.encoder is not None:
        _encoder_of(config, weights).check(prompts)
    elif config.words is None:
        raise ValueError(_no_text(config))
    else:
        for prompt in prompts:
            tokenise(config.words, prompt)


def _check_shapes(config: PipelineConfig, shapes: dict[str, tuple[int, ...]], rows: int, where: str) -> None:
    for name, width in zip(("video", "audio"), config.context_widths, strict=True):
        shape = shapes.pop(name, None)
        fits = shape is not None and len(shape) == 3 and (shape[0], shape[2]) == (rows, width)
        require(fits, f"{where}: {name}", shape, f"must be [{rows}, tokens, {width}]")
    shapes.pop("mask", None)
    require(not shapes, where, sorted(shapes), "unknown tensors; expected video, audio and, optionally, mask")


def _no_text(config: PipelineConfig) -> str:
    missing = "has no text encoder (words, or Gemma and connectors)"
    return f"{config.name!r} {missing}: give its contexts as a file (--contexts)"


def _encoder_of(config: PipelineConfig, weights: Weights | None) -> Encoder:
    """Find the encoder on disk; a loaded pipeline has none."""
    encoder = None if weights is None or isinstance(weights, Pipeline) else find_text(weights)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"the text encoder of {config.name!r} is on disk and no part of a loaded pipeline: give contexts"
        )
    return encoder


def read_prompts(
    weights: Weights, config: PipelineConfig, prompts: Sequence[str], source: TextSource, dtype: DTypeLike
) -> TextSource:
    """Let an encoder that lies on disk read all prompts of a request, before anything else is in memory.

    Returns:
        The contexts by prompt; `source` itself where there is one, or where the encoder is part of the pipeline.

    Raises:
        ValueError: with the figures, if more memory is needed than free; else as `check_text`.
    """
    if source is not None or config.encoder is None:
        return source
    encoder = _encoder_of(config, weights)
    check_free(encoder.count_bytes(dtype))
    distinct = tuple(dict.fromkeys(prompts))
    return keep(distinct, list(encoder.encode(distinct, dtype)), "the request")


def encode_text(pipeline: Pipeline, prompts: Sequence[str], source: TextSource) -> Contexts:
    """Return the contexts of prompts: from the text encoder, from a store or a file, or as they are."""
    source = open_source(source)
    if isinstance(source, Contexts):
        return source
    if isinstance(source, ContextStore):
        return source.read(prompts)
    if source is not None:
        file = open_tensors(source)
        video, audio = (jnp.asarray(file.read(name).astype(np.float32)) for name in ("video", "audio"))
        mask = jnp.asarray(file.read("mask").astype(np.int32)) if "mask" in file.entries else None
        return Contexts(video, audio, mask)
    words = pipeline.config.words
    if words is None or pipeline.words is None:
        raise ValueError(_no_text(pipeline.config))
    return encode(words, pipeline.words, prompts)


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
