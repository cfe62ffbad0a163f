"""What to show when: prompts that begin at given seconds of a stream, and what each change cost.

Times become blocks before any work is done; then a stream is followed and told its prompts at the borders.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.strict_json import require

log = logging.getLogger(__name__)


class ScheduledPrompt(NamedTuple):
    """A prompt that begins with a block, and where its contexts come from (None: the pipeline's own text encoder)."""

    block: int
    prompt: str
    contexts: text_source.TextSource = None


def plan_prompt_schedule(
    sampler: SamplerConfig, prompts: Sequence[tuple[int | float, str]], seconds: int | float | None
) -> tuple[ScheduledPrompt, ...]:
    """Find the blocks at which prompts begin; a time within a block waits for the next border, with a log line.

    Args:
        sampler: Has the layout.
        prompts: Seconds of the stream, and what to show from then on.
        seconds: Length of the stream; None is endless.

    Raises:
        ValueError: naming the time, if it is not within the stream or not after the one before.
    """
    schedule: list[ScheduledPrompt] = []
    for second, prompt in prompts:
        require(
            math.isfinite(second) and second > 0,
            "prompt-at",
            second,
            "must be above 0 s, where the first prompt begins",
        )
        block = _border(sampler, second)
        start = sampler.layout.start_seconds(block)
        if seconds is not None:
            require(start < seconds, "prompt-at", second, f"must begin before the end of the stream at {seconds:g} s")
        if schedule:
            rule = (
                f"must be at least one block after the prompt at {sampler.layout.start_seconds(schedule[-1].block)} s"
            )
            require(block > schedule[-1].block, "prompt-at", second, rule)
        if start != second:
            log.warning("prompt-at %g s is no block border; the prompt changes at %d s", second, start)
        schedule.append(ScheduledPrompt(block, prompt))
    return tuple(schedule)


def _border(sampler: SamplerConfig, second: int | float) -> int:
    """Return the first later block that does not start before a time."""
    layout = sampler.layout
    return 1 + max(0, math.ceil((second - layout.first_seconds) / layout.step_seconds))


def follow_schedule(
    stream: ChunkStream, schedule: Sequence[ScheduledPrompt], recompute: int | None = None, fade: int = 0
) -> Iterator[Chunk]:
    """Pass the chunks of a stream on, and tell it each prompt at its border; arguments as `ChunkStream.set_prompt`.

    What the changes need is compiled before the first chunk: a start that is later is better than a gap.
    """
    waiting = {change.block: change for change in schedule}
    if waiting:
        stream.rehearse_change(recompute, fade)
    while True:
        change = waiting.pop(stream.state.block, None)
        if change is not None:
            stream.set_prompt(change.prompt, recompute, fade, contexts=change.contexts)
        chunk = next(stream, None)
        if chunk is None:
            return
        yield chunk


class ChangeWatch:
    """A trace that waits for what a change of prompt makes, and for nothing else, and logs what it cost."""

    def __init__(self) -> None:
        self._began = self._ended = 0.0
        self._shown = 0

    def __call__(self, step: str, block: int, outputs: PyTree) -> None:
        """Take note of a step that was just dispatched."""
        if step == "text" and block:
            jax.block_until_ready(outputs)
            self._began = self._ended = time.perf_counter()
            self._shown = 0
        elif step == "recompute":
            jax.block_until_ready(outputs)
            self._ended, self._shown = time.perf_counter(), self._shown + 1
        elif step == "denoise" and self._began:
            taken = self._ended - self._began
            log.warning("block %d: another prompt; %d past blocks made again in %.3f s", block, self._shown, taken)
            self._began = 0.0
