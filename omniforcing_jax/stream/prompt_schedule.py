"""A schedule of prompts, each from its second on, and the time that each change takes.

Seconds become blocks before any work is done. Then the prompts of a stream are set at these block borders.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.strict_json import require

NO_CHANGES: Mapping[int, Callable[[], None]] = MappingProxyType({})

log = logging.getLogger(__name__)


class ScheduledPrompt(NamedTuple):
    """A prompt, its first block, and the source of its contexts (None: the pipeline's own text encoder)."""

    block: int
    prompt: str
    contexts: text_source.TextSource = None


def plan_prompt_schedule(
    sampler: SamplerConfig, prompts: Sequence[tuple[int | float, str]], seconds: int | float | None
) -> tuple[ScheduledPrompt, ...]:
    """Find the first block of each prompt. A time within a block moves to the next border, with a log line.

    Args:
        sampler: Sampling config, which has the layout.
        prompts: Times in seconds, each with the prompt from then on.
        seconds: Length of the stream; None is endless.

    Raises:
        ValueError: If a time is not within the stream, or not after the one before; names the time.
    """
    schedule: list[ScheduledPrompt] = []
    for second, prompt in prompts:
        block = plan_border("prompt-at", sampler, second, seconds)
        if schedule:
            before_s = sampler.layout.start_seconds(schedule[-1].block)
            rule = f"must be at least one block after the prompt at {before_s} s"
            require(block > schedule[-1].block, "prompt-at", second, rule)
        schedule.append(ScheduledPrompt(block, prompt))
    return tuple(schedule)


def plan_border(flag: str, sampler: SamplerConfig, second: int | float, seconds: int | float | None) -> int:
    """Return the first later block that does not start before a time; one within a block is said in a log line.

    Raises:
        ValueError: If the time is not within the stream of `seconds`; names the flag.
    """
    require(math.isfinite(second) and second > 0, flag, second, "must be above 0 s, where the stream begins")
    layout = sampler.layout
    block = 1 + max(0, math.ceil((second - layout.first_seconds) / layout.step_seconds))
    start = layout.start_seconds(block)
    if seconds is not None:
        require(start < seconds, flag, second, f"must begin before the end of the stream at {seconds:g} s")
    if start != second:
        what = flag.removesuffix("-at")
        log.warning("%s %g s is no block border; the %s changes at %d s", flag, second, what, start)
    return block


def follow_schedule(
    stream: ChunkStream,
    schedule: Sequence[ScheduledPrompt],
    recompute: int | None = None,
    fade: int = 0,
    others: Mapping[int, Callable[[], None]] = NO_CHANGES,
) -> Iterator[Chunk]:
    """Pass the chunks of a stream on, and set each prompt at its border. Arguments as for `ChunkStream.set_prompt`.

    The programs of the changes are compiled before the first chunk: a later start is better than a gap. `others` are
    further changes by their first block.
    """
    waiting = {change.block: change for change in schedule}
    if waiting or others:
        stream.rehearse_change(recompute, fade)
    while True:
        others.get(stream.state.block, lambda: None)()
        change = waiting.pop(stream.state.block, None)
        if change is not None:
            stream.set_prompt(change.prompt, recompute, fade, contexts=change.contexts)
        chunk = next(stream, None)
        if chunk is None:
            return
        yield chunk


class ChangeWatch:
    """A trace that logs the time of each change of prompt. It waits for the steps of a change and for nothing else."""

    def __init__(self) -> None:
        self._began = self._ended = 0.0
        self._recomputed = 0

    def __call__(self, step: str, block: int, outputs: PyTree) -> None:
        """Record a step that was just dispatched."""
        if step == "text" and block:
            jax.block_until_ready(outputs)
            self._began = self._ended = time.perf_counter()
            self._recomputed = 0
        elif step == "recompute":
            jax.block_until_ready(outputs)
            self._ended, self._recomputed = time.perf_counter(), self._recomputed + 1
        elif step == "denoise" and self._began:
            taken = self._ended - self._began
            log.warning("block %d: new prompt; %d past blocks recomputed in %.3f s", block, self._recomputed, taken)
            self._began = 0.0
