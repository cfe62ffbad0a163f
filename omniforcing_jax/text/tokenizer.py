"""Prompts to token ids, with the tokenizer.json of a Gemma folder.

There is no chat template and no system prompt: ids are the start token and the prompt, padded on the left. Gemma 3's
file adds the start token by itself, Gemma 4's does not.

Source: ltx-core@1.0.0:text_encoders/gemma/tokenizer.py; ltx-core@1.2.0:text_encoders/gemma/tokenizer.py.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from omniforcing_jax.io.atomic_write import AnyPath

FILE, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
PAD, START = "<pad>", "<bos>"


def what_is_missing(names: Collection[str]) -> str | None:
    """Return what to do about a Gemma folder without a readable tokenizer; None if it has one.

    Args:
        names: Names of the folder's files.
    """
    if FILE in names:
        return None
    if SENTENCEPIECE in names:
        made = "transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one beside it"
        return f"{SENTENCEPIECE} alone is not read, {FILE} is needed: newer releases have it, and {made}"
    return f"{FILE} comes with Gemma and belongs beside its weights"


class GemmaTokenizer:
    """A tokenizer that returns a fixed number of ids.

    Attributes:
        tokens: X, ids per prompt.
    """

    def __init__(self, folder: AnyPath, tokens: int):
        """Read a tokenizer.

        Args:
            folder: Contains tokenizer.json.
            tokens: Ids per prompt.

        Raises:
            ValueError: In one line, if the file is missing, is no tokenizer, or is one without start or padding.
        """
        from tokenizers import Tokenizer  # imported late: only Gemma needs it

        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file; {what_is_missing([file.name for file in Path(folder).glob('*')])}")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers 0.23 raises bare Exceptions
            raise ValueError(f"{path}: not a tokenizer: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        pad, start = (self._tokenizer.token_to_id(token) for token in (PAD, START))
        if pad is None or start is None:
            raise ValueError(f"{path}: has no token {PAD if pad is None else START}, expected a tokenizer of Gemma")
        self._pad, self._start = pad, start
        self.tokens = tokens

    def __call__(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "B X"], Int[np.ndarray, "B X"]]:
        """Turn prompts into token ids and a mask (1 = a token, 0 = padding), both int32.

        White space around a prompt does not count. Longer prompts are cut after X tokens. The empty prompt is the start
        token alone.
        """
        ids = np.full((len(prompts), self.tokens), self._pad, np.int32)
        mask = np.zeros_like(ids)
        for row, found in enumerate(map(self._encode, prompts)):
            kept = found[: self.tokens]
            ids[row, -len(kept) :], mask[row, -len(kept) :] = kept, 1
        return ids, mask

    def count(self, prompt: str) -> int:
        """Count the tokens of a prompt before cutting, the start token included."""
        return len(self._encode(prompt))

    def _encode(self, prompt: str) -> list[int]:
        """Return all ids of a prompt, the start token first."""
        ids = self._tokenizer.encode(prompt.strip()).ids
        return ids if ids[:1] == [self._start] else [self._start, *ids]
