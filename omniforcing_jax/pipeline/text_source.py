"""Text contexts of a request: from the weights' own text encoder, from a file, or as arrays.

Every refusal is a ValueError of one line that names the culprit.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.pipeline.budget import check_free
from omniforcing_jax.pipeline.checks import Weights
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.pipeline.weights_folder import find_text_encoder
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.text.encoder import Encoder
from omniforcing_jax.text.store import ContextStore, is_store, open_store, store_of
from omniforcing_jax.text.words import encode, tokenise

TextSource = AnyPath | TextContexts | ContextStore | None
"""Contexts as arrays or by prompt, a file of either, or None for the weights' own text encoder."""


def open_source(source: TextSource) -> TextSource:
    """Open a file that stores contexts by prompt; return any other source as it is."""
    if source is None or isinstance(source, TextContexts | ContextStore) or not is_store(open_tensors(source)):
        return source
    return open_store(source)


def check_text(
    config: PipelineConfig, prompts: Sequence[str], source: TextSource, weights: Weights | None = None
) -> None:
    """Check that a text encoder knows every word, or that contexts fit the weights.

    Args:
        config: Configs of the weights.
        prompts: Prompts to encode.
        source: Contexts instead of the text encoder.
        weights: Weights folder, for a text encoder that stays on disk.

    Raises:
        ValueError: If not; names unknown words and prompts with the nearest known ones.
    """
    source = open_source(source)
    if isinstance(source, ContextStore):
        rule = f"{config.name!r} reads contexts of {config.context_widths} channels"
        require(source.widths == config.context_widths, source.where, source.widths, rule)
        source.check(prompts)
    elif source is not None:
        tensors = source._asdict() if isinstance(source, TextContexts) else open_tensors(source).entries
        where = "contexts" if isinstance(source, TextContexts) else str(source)
        _check_shapes(config, {name: x.shape for name, x in tensors.items() if x is not None}, len(prompts), where)
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
    return f"{config.name!r} {missing}: pass text contexts as a file (--contexts)"


def _encoder_of(config: PipelineConfig, weights: Weights | None) -> Encoder:
    """Find the text encoder on disk; it is no part of a loaded pipeline."""
    encoder = None if weights is None or isinstance(weights, Pipeline) else find_text_encoder(weights)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"the text encoder of {config.name!r} is on disk and no part of a loaded pipeline: pass text contexts"
        )
    return encoder


def encode_on_disk(
    weights: Weights, config: PipelineConfig, prompts: Sequence[str], source: TextSource, dtype: DTypeLike
) -> TextSource:
    """Encode all prompts of a request with a text encoder that stays on disk, before anything else is in memory.

    Returns:
        The contexts by prompt. `source` itself if there is one, or if the encoder is part of the pipeline.

    Raises:
        ValueError: If more memory is needed than is free, with the figures; else as `check_text`.
    """
    if source is not None or config.encoder is None:
        return source
    encoder = _encoder_of(config, weights)
    check_free(encoder.count_bytes(dtype))
    distinct = tuple(dict.fromkeys(prompts))
    return store_of(distinct, list(encoder.encode(distinct, dtype)), "the request")


def encode_text(pipeline: Pipeline, prompts: Sequence[str], source: TextSource) -> TextContexts:
    """Return the contexts of prompts: from the pipeline's text encoder, or from `source`."""
    source = open_source(source)
    if isinstance(source, TextContexts):
        return source
    if isinstance(source, ContextStore):
        return source.read(prompts)
    if source is not None:
        file = open_tensors(source)
        video, audio = (jnp.asarray(file.read(name).astype(np.float32)) for name in ("video", "audio"))
        mask = jnp.asarray(file.read("mask").astype(np.int32)) if "mask" in file.entries else None
        return TextContexts(video, audio, mask)
    words = pipeline.config.words
    if words is None or pipeline.words is None:
        raise ValueError(_no_text(pipeline.config))
    return encode(words, pipeline.words, prompts)
