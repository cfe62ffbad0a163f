"""Text for small networks: a vocabulary, a tokeniser and a table of word vectors.

Large networks use Gemma. A network of a few million parameters needs only one vector per word and one per position. The
vocabulary is data of the weights (`WordsConfig`). Which sentences make sense is the matter of the world's own grammar.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omniforcing_jax.parallel.spec import Leaf, array
from omniforcing_jax.strict_json import LARGEST_SIZE, parse, require, require_counts
from omniforcing_jax.text.contexts import TextContexts

PAD, START, FIRST_WORD = 0, 1, 2  # token ids; the vocabulary's words follow


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """The vocabulary of a network, and the shape of its text contexts."""

    vocabulary: tuple[str, ...]
    tokens: int = 16  # X, start token included
    channels: int = 64

    def __post_init__(self):
        bad = [word for word in self.vocabulary if not re.fullmatch(r"[a-z]+", word)]
        fits = not bad and len(set(self.vocabulary)) == len(self.vocabulary)
        require(fits, "vocabulary", self.vocabulary, "words must be distinct and of lower-case letters only")
        require_counts(self, LARGEST_SIZE, "tokens", "channels")

    @property
    def rows(self) -> int:
        """V, the number of token ids."""
        return FIRST_WORD + len(self.vocabulary)

    def to_json(self) -> dict:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_json(cls, values: Mapping) -> "WordsConfig":
        """Read what `to_json` wrote.

        Raises:
            ValueError: A key is unknown or missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if wrong := known.symmetric_difference(values):
            raise ValueError(f"words config: unknown or missing keys {sorted(wrong)}, expected exactly {sorted(known)}")
        return parse(cls, dict(values), "words config")


@flax.struct.dataclass
class Words:
    """The weights: a vector per token id and a vector per position."""

    words: Leaf  # [V, D]
    places: Leaf  # [X, D]


def init_words(config: WordsConfig, key: Array) -> Words:
    """Draw word vectors of unit variance and position vectors of half the deviation: words matter more than order."""
    for_words, for_places = jax.random.split(key)
    return Words(
        words=jax.random.normal(for_words, (config.rows, config.channels)),
        places=0.5 * jax.random.normal(for_places, (config.tokens, config.channels)),
    )


def _unknown(config: WordsConfig, words: Sequence[str]) -> str:
    """Describe the unknown words, each with the nearest known ones."""
    parts = []
    for word in dict.fromkeys(words):
        near = difflib.get_close_matches(word, config.vocabulary, n=3, cutoff=0.5)
        parts.append(f"{word!r}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    return "unknown word" + ("s " if len(parts) > 1 else " ") + ", ".join(parts)


def tokenise(config: WordsConfig, prompt: str) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
    """Turn a prompt into token ids and a mask (1 = a token, 0 = padding), both int32 of fixed length.

    Case and punctuation do not matter. The empty prompt, which is also guidance's negative prompt, is the start token
    alone.

    Raises:
        ValueError: A word is unknown (named with the nearest known ones), or there are too many words.
    """
    words = re.findall(r"\w+", prompt.lower())
    if unknown := [word for word in words if word not in config.vocabulary]:
        known = ", ".join(sorted(config.vocabulary))
        raise ValueError(f"{_unknown(config, unknown)} in the prompt {prompt!r}; known words: {known}")
    if len(words) >= config.tokens:
        raise ValueError(f"the prompt {prompt!r} has {len(words)} words, at most {config.tokens - 1} fit")
    ids = np.full(config.tokens, PAD, np.int32)
    ids[: len(words) + 1] = [START, *(FIRST_WORD + config.vocabulary.index(word) for word in words)]
    return ids, (ids != PAD).astype(np.int32)


def embed(params: Words, ids: Int[Array, "B X"]) -> Float[Array, "B X D"]:
    """Look tokens up and add their positions; padding is zero."""
    context = array(params.words)[ids] + array(params.places)[None]
    return context * (ids != PAD)[..., None].astype(context.dtype)


def contexts(params: Words, ids: Int[Array, "B X"]) -> TextContexts:
    """Return the text contexts of token ids, the same for both streams."""
    features = embed(params, ids)
    return TextContexts(features, features, (ids != PAD).astype(jnp.int32))


def blank(ids: Int[Array, "B X"]) -> Int[Array, "B X"]:
    """Return the ids of the empty prompt, in the shape of `ids`."""
    return jnp.broadcast_to(jnp.where(jnp.arange(ids.shape[1]) == 0, START, PAD), ids.shape)


def encode(config: WordsConfig, params: Words, prompts: Sequence[str]) -> TextContexts:
    """Return the text contexts of prompts.

    Raises:
        ValueError: As in `tokenise`.
    """
    return contexts(params, jnp.asarray(np.stack([tokenise(config, prompt)[0] for prompt in prompts])))
