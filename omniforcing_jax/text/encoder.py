"""Gemma and the connectors as one text encoder, which is in memory only while it works."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Int

from omniforcing_jax.io import manifest, weights
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.parallel import spec
from omniforcing_jax.strict_json import Config, require
from omniforcing_jax.text.connector import Connectors, ConnectorsConfig, connectors_spec, make_contexts
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.text.gemma import Gemma, gemma_spec, hidden_states
from omniforcing_jax.text.gemma_config import GemmaConfig
from omniforcing_jax.text.tokenizer import GemmaTokenizer

log = logging.getLogger(__name__)
ComponentPath = tuple[Path, str]  # weights folder and component


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """A text model, and the connectors between it and the streams."""

    gemma: GemmaConfig
    connectors: ConnectorsConfig

    def __post_init__(self):
        gemma, connectors = self.gemma, self.connectors
        require(connectors.text_width == gemma.width, "connectors.text_width", connectors.text_width, _has(gemma.width))
        states = connectors.text_states
        require(states == gemma.states, "connectors.text_states", states, _has(gemma.states))


def _has(value: int) -> str:
    return f"the text model has {value}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A text encoder on disk.

    Attributes:
        config: Its config.
        text: The text model, with its tokenizer.json.
        connectors: The connectors.
    """

    config: EncoderConfig
    text: ComponentPath
    connectors: ComponentPath

    def check(self, prompts: Sequence[str] = ()) -> GemmaTokenizer:
        """Check the names and shapes of all weights, the tokenizer and the prompts, without reading a tensor.

        Raises:
            ValueError: A part is missing or does not fit, or a prompt has a token that the text model lacks; one line.
        """
        for path, tree in ((self.text, self._gemma()), (self.connectors, self._connectors())):
            file = open_tensors(Path(*path) / weights.MODEL)
            shapes = {name: tuple(leaf.shape) for name, leaf in weights.name_leaves(tree).items()}
            weights.compare_shapes(file.shapes, shapes, str(file.path))
            manifest.check(Path(path[0]), [path[1]])
        tokenizer, vocabulary = (
            GemmaTokenizer(Path(*self.text), self.config.connectors.tokens),
            self.config.gemma.vocabulary,
        )
        for prompt in prompts:
            # A tokenizer may have more tokens than its model: that of Gemma 3 1B has one for images.
            rule = f"has a token that is not among the text model's {vocabulary}"
            require(int(tokenizer([prompt])[0].max()) < vocabulary, "prompt", prompt, rule)
        return tokenizer

    def count_bytes(self, dtype: DTypeLike) -> dict[str, int]:
        """Count the bytes that it needs while it works, by what they hold."""
        connectors, size = self.config.connectors, jnp.dtype(dtype).itemsize
        states = connectors.tokens * connectors.text_states * connectors.text_width * size
        return {**self._weight_bytes(dtype), "hidden states": 3 * states}

    def weight_bytes(self, dtype: DTypeLike) -> int:
        """Count the bytes of its weights."""
        return sum(self._weight_bytes(dtype).values())

    def _weight_bytes(self, dtype: DTypeLike) -> dict[str, int]:
        parts = {"Gemma": self._gemma(), "connectors": self._connectors()}
        return {name: jnp.dtype(dtype).itemsize * spec.count(tree) for name, tree in parts.items()}

    def encode(self, prompts: Sequence[str], dtype: DTypeLike = jnp.float32) -> Iterator[TextContexts]:
        """Load the encoder, yield the contexts of each prompt, and free the encoder.

        Args:
            prompts: The prompts. They are encoded one at a time, so contexts do not depend on their neighbours.
            dtype: Type of the weights, of the computation and of the contexts.

        Yields:
            Batches of one.

        Raises:
            ValueError: As in `check`.
        """
        tokenizer = self.check(prompts)
        for prompt in prompts:
            if (cut := tokenizer.count(prompt) - tokenizer.tokens) > 0:
                log.warning("the prompt %.40r... is longer than %d tokens, %d are cut", prompt, tokenizer.tokens, cut)
        gemma = weights.load_component(*self.text, self._gemma(dtype))
        connectors = weights.load_component(*self.connectors, self._connectors(dtype))
        for prompt in prompts:
            row = map(jnp.asarray, tokenizer([prompt]))
            yield encode_ids(gemma, connectors, *row, config=self.config, dtype=jnp.dtype(dtype))

    def _gemma(self, dtype: DTypeLike = jnp.float32) -> Any:
        return spec.abstract(gemma_spec(self.config.gemma), dtype)

    def _connectors(self, dtype: DTypeLike = jnp.float32) -> Any:
        return spec.abstract(connectors_spec(self.config.connectors), dtype)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def encode_ids(
    gemma: Gemma,
    connectors: Connectors,
    ids: Int[Array, "B X"],
    mask: Int[Array, "B X"],
    *,
    config: EncoderConfig,
    dtype: DTypeLike,
) -> TextContexts:
    """Make the text contexts of token ids."""
    states = hidden_states(config.gemma, gemma, ids, mask, dtype)
    return make_contexts(config.connectors, connectors, states, mask)
