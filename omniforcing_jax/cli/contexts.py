"""The command `contexts`: from a file of prompts to a file of their text contexts, one prompt at a time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from omniforcing_jax.cli.options import ContextsOptions
from omniforcing_jax.io.atomic_write import check_writable, make_parents
from omniforcing_jax.io.inputs import refuse_inputs
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.io.text_file import read_lines
from omniforcing_jax.pipeline.budget import check_free
from omniforcing_jax.pipeline.loading import announce_text
from omniforcing_jax.pipeline.shipped import find_weights
from omniforcing_jax.pipeline.weights_folder import find_text_encoder, load_words
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.text.encoder import Encoder
from omniforcing_jax.text.store import write_store
from omniforcing_jax.text.words import WordsConfig, encode, tokenise

EMPTY = ""  # the negative prompt of guidance


def prepare_contexts(command: ContextsOptions, startup: Startup) -> Callable[[], None]:
    """Check the request. What comes back does the work.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    prompts = read_prompts(command.prompts)
    weights, dtype = find_weights(command.weights), jnp.dtype(command.dtype)
    refuse_inputs("out", command.out, {"prompts": command.prompts, "weights": weights})
    check_writable(command.out)
    text = find_text_encoder(weights)
    if isinstance(text, Encoder):
        text.check(prompts)
        check_free(text.count_bytes(dtype))
        about = {"encoder": text.config.to_dict()}
        contexts = text.encode(prompts, dtype)
    elif text is not None:
        for prompt in prompts:
            tokenise(text, prompt)
        about, contexts = {"encoder": text.to_json()}, _encode_words(weights, text, prompts)
    else:
        raise ValueError(f"{weights}: has no text encoder; expected the component text, with connectors if it is Gemma")

    def work() -> None:
        make_parents(command.out)
        startup.identify(weights.name, dtype.name)
        announce_text(startup, weights, None, dtype)
        write_store(command.out, prompts, _watched(contexts, len(prompts), startup), {**about, "weights": weights.name})
        print(f"{command.out}: contexts of {len(prompts)} prompts, the empty one included")

    return work


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read one prompt per line, without the white space around it, each once and in order; the empty one comes last.

    Raises:
        ValueError: In one line, if the file cannot be read, is not UTF-8 or has no prompt.
    """
    prompts = tuple(dict.fromkeys(read_lines(path)))
    require(len(prompts) > 0, "prompts", str(path), "must have a prompt per line, at least one")
    return (*prompts, EMPTY)


def _encode_words(folder: Path, config: WordsConfig, prompts: Sequence[str]) -> Iterator[TextContexts]:
    params = load_words(folder, config)
    for prompt in prompts:
        yield encode(config, params, [prompt])


def _watched(contexts: Iterator[TextContexts], count: int, startup: Startup) -> Iterator[TextContexts]:
    """Pass contexts on when they are there, and show how many are."""
    with contextlib.ExitStack() as stack:
        show = None
        for done, each in enumerate(contexts, 1):
            jax.block_until_ready(each)
            if show is None:
                startup.ready()
                show = stack.enter_context(Bar("reading", count, "prompts"))
            show(done)
            yield each
