"""Contexts that the command `contexts` wrote, copied into a store that trainings read.

A stream looks a few prompts up in one safetensors file (text/store.py). A training draws rows at random, from several
processes, and resumes. The values are the same.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.text.store import ContextStore, open_store
from omniforcing_jax.train.contexts import contexts_header
from omniforcing_jax.train.store import Header, Row, fill

SHARDS = 64  # at most, where nobody says


def import_contexts(
    path: Path, folder: Path, *, shards: int | None = None, process: int = 0, processes: int = 1
) -> int:
    """Copy contexts row by row; a second call goes on where the first stopped.

    Args:
        path: a safetensors file of contexts.
        folder: Of the store.
        shards: Files that the rows will lie in; None for 64, or as many as there are rows.
        process: Which of `processes` this is; each writes its own shards.
        processes: How many there are.

    Returns:
        How many rows were copied now.

    Raises:
        ValueError: If the file is no store of contexts, its rows have different numbers of tokens or types, or the
            folder holds another store; names the file.
    """
    source = open_store(path)
    header = _describe(path, source, min(SHARDS, len(source.prompts)) if shards is None else shards)

    def read(index: int) -> Row:
        contexts = source.read_row(index)
        tokens = contexts.video.shape[1]
        mask = np.ones(tokens, bool) if contexts.mask is None else np.asarray(contexts.mask[0], bool)
        features = {"context_video": np.asarray(contexts.video[0]), "context_audio": np.asarray(contexts.audio[0])}
        return Row(source.prompts[index], {**features, "context_mask": mask})

    return fill(folder, header, read, process=process, processes=processes)


def _describe(path: Path, source: ContextStore, shards: int) -> Header:
    """Make the header; what the file says of itself and a hash of its prompts tell it from other files."""
    entries, rows = open_tensors(path).entries, range(len(source.prompts))
    first = entries["0/video"]
    for row in rows:
        for name in ("video", "audio"):
            entry = entries[f"{row}/{name}"]
            if entry.shape[0] != first.shape[0]:
                rule = "a training's rows are equally long"
                raise ValueError(f"{path}: row {row} has {entry.shape[0]} tokens, row 0 has {first.shape[0]}; {rule}")
            if entry.dtype != first.dtype:
                raise ValueError(f"{path}: {row}/{name} is {entry.dtype}, 0/video is {first.dtype}; one type is needed")
    header = contexts_header(
        count=len(rows),
        shards=shards,
        tokens=first.shape[0],
        channels=source.widths,
        encoder=json.dumps(dict(source.about), sort_keys=True),
        dtype=str(first.dtype),
    )
    prompts = hashlib.sha256(json.dumps(source.prompts).encode()).hexdigest()
    return dataclasses.replace(header, facts={**header.facts, "prompts": prompts})
