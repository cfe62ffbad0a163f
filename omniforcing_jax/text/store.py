"""Text contexts of many prompts, looked up by prompt: from a file, or made just now.

With such a file a stream needs no text encoder in memory. Training reads a store that is made from it
(train/import_contexts.py). One safetensors file holds

    metadata   "contexts": JSON {"format": 1, "prompts": [...], ...} and any other values
    tensors    "<row>/video" [X, D_v], "<row>/audio" [X, D_a], "<row>/mask" [X] int32 (absent: all may be seen)

Rows are written one by one, so a file may be larger than memory.
"""

import difflib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io.atomic_write import AnyPath, replacing
from omniforcing_jax.io.tensor_file import TensorFile, open_tensors, write_tensors
from omniforcing_jax.strict_json import as_texts, loads_object, require
from omniforcing_jax.text.contexts import TextContexts

FORMAT, METADATA = 1, "contexts"
NAMED_LENGTH = 60  # characters of a prompt in a message


@dataclass(frozen=True, kw_only=True)
class ContextStore:
    """Contexts of known prompts; white space around a prompt does not count.

    Attributes:
        where: Its name in messages.
        prompts: All prompts, each once.
        read_row: Returns the contexts of prompt i, a batch of one, in any floating type.
        widths: Channels of the video contexts and of the audio contexts.
        about: Other metadata of the file.
    """

    where: str
    prompts: tuple[str, ...]
    read_row: Callable[[int], TextContexts]
    widths: tuple[int, int]
    about: Mapping[str, Any]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {prompt.strip(): row for row, prompt in enumerate(self.prompts)}

    def check(self, prompts: Sequence[str]) -> None:
        """Check that prompts are known.

        Raises:
            ValueError: A prompt is unknown; names the first such prompt and the nearest known one, in one line.
        """
        for prompt in prompts:
            if prompt.strip() not in self._rows:
                near = difflib.get_close_matches(prompt, self.prompts, n=1)
                hint = f"; did you mean {_short(near[0])}?" if near else f", only {len(self.prompts)} others"
                raise ValueError(f"{self.where}: has no contexts of the prompt {_short(prompt)}{hint}")

    def read(self, prompts: Sequence[str]) -> TextContexts:
        """Return the contexts of prompts, as float32, one row each.

        Raises:
            ValueError: As in `check`, or rows have different numbers of tokens.
        """
        self.check(prompts)
        rows = [self.read_row(self._rows[prompt.strip()]) for prompt in prompts]
        if len({row.video.shape for row in rows}) > 1:
            raise ValueError(f"{self.where}: the prompts have different numbers of tokens and cannot form a batch")
        video, audio = (
            jnp.concatenate([jnp.asarray(features).astype(jnp.float32) for features in stream])
            for stream in ([row.video for row in rows], [row.audio for row in rows])
        )
        if all(row.mask is None for row in rows):
            return TextContexts(video, audio, None)
        masks = [np.ones(row.video.shape[:2], np.int32) if row.mask is None else row.mask for row in rows]
        return TextContexts(video, audio, jnp.concatenate([jnp.asarray(mask, jnp.int32) for mask in masks]))


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= NAMED_LENGTH else prompt[: NAMED_LENGTH - 3] + "...")


def store_of(prompts: Sequence[str], contexts: Sequence[TextContexts], where: str) -> ContextStore:
    """Make a store of contexts in memory, one row each."""
    widths = contexts[0].video.shape[-1], contexts[0].audio.shape[-1]
    return ContextStore(where=where, prompts=tuple(prompts), read_row=contexts.__getitem__, widths=widths, about={})


def is_store(file: TensorFile) -> bool:
    """Whether a safetensors file is a store, not the contexts of one batch."""
    return METADATA in file.metadata


def open_store(path: AnyPath) -> ContextStore:
    """Open a file of contexts; rows are read on demand.

    Raises:
        ValueError: The file is missing, damaged or no store; one line.
    """
    file = open_tensors(path)
    if not is_store(file):
        raise ValueError(f"{file.path}: not a store of contexts: its metadata have no {METADATA!r}")
    about = loads_object(file.metadata[METADATA], f"{file.path}: metadata {METADATA!r}")
    form, found = about.pop("format", None), about.pop("prompts", None)
    require(type(form) is int and form == FORMAT, f"{file.path}: format", form, f"must be {FORMAT}")
    prompts = as_texts(found, str(file.path))
    if not prompts or len(set(prompts)) != len(prompts):
        raise ValueError(f"{file.path}: prompts must be a list of distinct strings, at least one")

    def read_row(row: int) -> TextContexts:
        video, audio = (jnp.asarray(file.read(f"{row}/{name}"))[None] for name in ("video", "audio"))
        name = f"{row}/mask"
        return TextContexts(video, audio, jnp.asarray(file.read(name))[None] if name in file.entries else None)

    return ContextStore(
        where=str(file.path),
        prompts=prompts,
        read_row=read_row,
        widths=_check_rows(file, len(prompts)),
        about=about,
    )


def _check_rows(file: TensorFile, rows: int) -> tuple[int, int]:
    """Check that there are exactly the tensors of `rows` rows; return the widths of both streams."""
    shapes, widths = file.shapes, set()
    for row in range(rows):
        video, audio = (shapes.pop(f"{row}/{name}", ()) for name in ("video", "audio"))
        mask = shapes.pop(f"{row}/mask", video[:1])
        if not (len(video) == len(audio) == 2 and video[0] == audio[0] and mask == video[:1]):
            raise ValueError(f"{file.path}: row {row} has video {video} and audio {audio}, expected [tokens, channels]")
        widths.add((video[1], audio[1]))
    if shapes or len(widths) != 1:
        raise ValueError(f"{file.path}: unknown tensors {sorted(shapes)} or rows of different widths {sorted(widths)}")
    return widths.pop()


def write_store(
    path: AnyPath, prompts: Sequence[str], contexts: Iterator[TextContexts], about: Mapping[str, Any]
) -> None:
    """Write contexts as they come, and put the file into its place once it is complete.

    Args:
        path: The file.
        prompts: One for each row, each once.
        contexts: One batch of one per prompt, all of the same shapes and types.
        about: JSON values to store with the prompts.

    Raises:
        ValueError: There are no prompts, one occurs twice, or a row has another shape or type than the first.
    """
    path = Path(path)
    if not prompts or len(set(prompts)) != len(prompts):
        raise ValueError(f"{path}: prompts must be distinct, and at least one")
    current = _as_tensors(next(contexts))
    first = {name: (value.dtype, value.shape) for name, value in current.items()}
    layout = {f"{row}/{name}": form for row in range(len(prompts)) for name, form in first.items()}
    at = 0

    def get(name: str) -> np.ndarray:
        nonlocal at, current
        row, _, part = name.partition("/")
        if int(row) != at:
            at, current = int(row), _as_tensors(next(contexts))
        value = current.get(part)
        if value is None or (value.dtype, value.shape) != first[part]:
            raise ValueError(f"{path}: the {part} of prompt {row} must have the shape and type of the first prompt's")
        return value

    text = json.dumps({**about, "format": FORMAT, "prompts": list(prompts)}, ensure_ascii=False)
    with replacing(path) as new:
        write_tensors(new, layout, get, {METADATA: text})


def _as_tensors(contexts: TextContexts) -> dict[str, np.ndarray]:
    named = {name: np.asarray(value)[0] for name, value in contexts._asdict().items() if value is not None}
    return {name: value.astype(np.int32) if name == "mask" else value for name, value in named.items()}
