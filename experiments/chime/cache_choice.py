"""What of a cache can be in eight bits: the error of chime's next block, and the memory that it saves, by choice.

A stream of chime is made with a wide cache. Then each of its blocks is made again from the same past, which is in eight
bits in part: so errors do not add up, and a choice is judged by itself. The error of a block is the root of the mean
square of what differs, over the standard deviation of the block, in latents. The table has means over later blocks.

Hardware: two CPU cores, a minute for each choice.
Expect: int8 several times closer than float8, which has three bits of mantissa.

    python -m experiments.chime.cache_choice --json out/cache_choice.json
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.judge.sources import read_prompts
from experiments.cli_errors import report
from experiments.script import read_flags
from omniforcing_jax import rollout
from omniforcing_jax.config import EightBitKind
from omniforcing_jax.io import machine
from omniforcing_jax.io.progress import Bar
from omniforcing_jax.model.eight_bits import EightBitCache
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.pipeline.budget import count_bytes
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.text_source import encode_text
from omniforcing_jax.pipeline.weights_folder import load_pipeline
from omniforcing_jax.rollout import PromptKV, StaticConfig
from omniforcing_jax.stream.plan import resolve_request
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require

INT8, FLOAT8 = EightBitKind.INT8, EightBitKind.FLOAT8
VIDEO, AUDIO = ("video_self", "v2a"), ("audio_self", "a2v")
CHOICES = {
    "int8: ring of video_self": EightBitCache(INT8, VIDEO[:1], pinned=False),
    "int8: ring of v2a": EightBitCache(INT8, VIDEO[1:], pinned=False),
    "int8: both rings": EightBitCache(INT8, VIDEO, pinned=False),
    "int8: both rings, and what is pinned there (the default)": EightBitCache(INT8),
    "int8: rings of audio_self and a2v": EightBitCache(INT8, AUDIO, pinned=False),
    "int8: everything": EightBitCache(INT8, VIDEO + AUDIO),
    "float8: the default": EightBitCache(FLOAT8),
    "float8: everything": EightBitCache(FLOAT8, VIDEO + AUDIO),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Judge what of chime's cache can be in eight bits."""

    prompts: str = "8"
    """Text file with one prompt per line, or how many to draw."""
    blocks: int = 9
    """Length of the stream, in blocks."""
    seed: int = 0
    """Random seed of prompts and noise."""
    weights: Path = CHIME_WEIGHTS / "student"
    """Weights folder of a student of chime."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A student, its prompts as rows of a batch, and their random keys."""

    pipeline: Pipeline
    static: StaticConfig
    prompt: PromptKV
    keys: jax.Array


def run(arguments: Arguments) -> dict[str, dict[str, float]]:
    """Judge all choices; returns errors, and the share of the cache's memory that is left.

    Raises:
        ValueError: In one line, whatever is wrong with the arguments.
    """
    require(arguments.blocks >= 3, "blocks", arguments.blocks, "must be at least 3: block 1 reads nothing but block 0")
    subject = _open(arguments)
    truth, wide = list(_blocks(subject, arguments.blocks, None)), _cache_bytes(subject)
    figures = {}
    with Bar("judging", len(CHOICES), "choices") as bar:
        for name, choice in bar.over(CHOICES.items()):
            narrow = dataclasses.replace(subject, static=subject.static._replace(cache=choice))
            made = list(_blocks(narrow, arguments.blocks, truth))
            errors = [_errors(*pair) for pair in zip(made[2:], truth[2:], strict=True)]
            video, audio = np.mean(errors, axis=0).tolist()
            figures[name] = {"video": video, "audio": audio, "memory": _cache_bytes(narrow) / wide}
    return figures


def _open(arguments: Arguments) -> Subject:
    machine.use_compilation_cache()
    prompts = read_prompts(arguments.prompts, arguments.seed)
    pipeline = load_pipeline(arguments.weights)
    static = resolve_request(pipeline.config, StreamRequest(prompt=tuple(prompts))).static
    prompt = rollout.make_prompt_kv(pipeline.transformer, *encode_text(pipeline, prompts, None), static=static)
    return Subject(pipeline, static, prompt, jax.random.split(jax.random.key(arguments.seed), len(prompts)))


def _empty(subject: Subject) -> Any:
    return rollout.make_cache(subject.static, len(subject.keys), is_list(subject.pipeline.transformer.layers))


def _blocks(subject: Subject, count: int, past: list[Streams] | None) -> Iterator[Streams]:
    """Make blocks, each from a past of its own, or of given blocks."""
    params, static, cache = subject.pipeline.transformer, subject.static, _empty(subject)
    for k in range(count):
        positions = rollout.block_positions(static, k)
        made, cache = rollout.denoise_block(params, cache, subject.prompt, subject.keys, positions, static=static)
        yield made
        kept = made if past is None else past[k]
        cache = rollout.commit_block(params, cache, subject.prompt, subject.keys, kept, positions, static=static)


def _errors(made: Streams, truth: Streams) -> list[float]:
    return [float(jnp.sqrt(jnp.mean(jnp.square(a - b))) / jnp.std(b)) for a, b in zip(made, truth, strict=True)]


def _cache_bytes(subject: Subject) -> int:
    return count_bytes(jax.eval_shape(lambda: _empty(subject)))


def tabulate(figures: dict[str, dict[str, float]]) -> list[str]:
    """Format the figures as a Markdown table."""
    lines = ["| in eight bits | error of picture | error of sound | cache's memory |", "|---|---|---|---|"]
    for name, row in figures.items():
        lines.append(f"| {name} | {row['video']:.2%} | {row['audio']:.2%} | {row['memory']:.0%} |")
    return lines


def main(arguments: Arguments) -> None:
    """Print what each choice costs and saves; bad input is one line on stderr and exit code 2."""
    report(arguments.json, partial(run, arguments), tabulate)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
