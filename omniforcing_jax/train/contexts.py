"""Text contexts by prompt, made once by a large text encoder and read by every stage.

They are a store (store.py) of kind "text_contexts". Stages 1 and 3 draw from it directly, because they need prompts
only. Stage 2 looks the prompts of its pairs up in it.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from omniforcing_jax.train.compare import differences, refuse
from omniforcing_jax.train.data import Source
from omniforcing_jax.train.store import Header, Store

KIND = "text_contexts"


def contexts_header(
    *, count: int, shards: int, tokens: int, channels: tuple[int, int], encoder: str, dtype: str = "bfloat16"
) -> Header:
    """Describe a store of text contexts.

    Args:
        count: Prompts in all.
        shards: Files that they lie in.
        tokens: X, tokens of a context, padding included.
        channels: Features per token for the video and for the audio stream.
        encoder: Fingerprint of the weights that made them.
        dtype: Of the features.
    """
    arrays = {
        "context_video": (dtype, (tokens, channels[0])),
        "context_audio": (dtype, (tokens, channels[1])),
        "context_mask": ("bool", (tokens,)),
    }
    return Header(kind=KIND, count=count, shards=shards, arrays=arrays, facts={"encoder": encoder})


class Contexts:
    """Contexts as a source of batches: `context_video` and `context_audio` [X, C], `context_mask` [X], True to see."""

    def __init__(self, folder: Path, *, channels: tuple[int, int], encoder: str | None = None):
        """Open a store and check that a network can read it.

        Raises:
            ValueError: If the store is missing, incomplete, damaged, of other widths than `channels` or, where one is
                given, by another encoder.
        """
        self._store = Store(folder, KIND)
        header = self._store.header
        found = [header.arrays[name][1][1] for name in ("context_video", "context_audio")]
        refuse(folder, "other contexts", differences({"channels": found}, {"channels": [*channels]}))
        if encoder is not None:
            refuse(folder, "other contexts", differences({"encoder": header.fact("encoder")}, {"encoder": encoder}))
        self.folder, self.prompts = folder, self._store.prompts
        self._rows = {prompt: row for row, prompt in enumerate(self.prompts)}

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read context `index`."""
        return self._store[index].arrays

    def row_of(self, prompt: str) -> int:
        """Find a prompt.

        Raises:
            ValueError: If it is not there.
        """
        if prompt not in self._rows:
            raise ValueError(f"{self.folder}: no context of '{prompt}'")
        return self._rows[prompt]


class Prompted(Source, Protocol):
    """Examples that have a prompt each, such as trajectories or clips."""

    @property
    def prompts(self) -> list[str]:
        """The prompts, by row."""
        ...


class WithContexts(Source):
    """Trajectories or clips, each with the context of its prompt."""

    def __init__(self, source: Prompted, contexts: Contexts):
        """Find the context of every prompt.

        Raises:
            ValueError: If a prompt has none.
        """
        self._source, self._contexts = source, contexts
        self._rows = [contexts.row_of(prompt) for prompt in source.prompts]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read example `index` with its context."""
        return {**self._source[index], **self._contexts[self._rows[index]]}
