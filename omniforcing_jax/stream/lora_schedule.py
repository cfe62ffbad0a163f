"""Strengths of LoRAs that change at block borders of a stream."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.pipeline.loras import GivenLoras, LoraFiles, check_loras
from omniforcing_jax.stream.chunk_stream import ChunkStream
from omniforcing_jax.stream.prompt_schedule import plan_border


class ScheduledLora(NamedTuple):
    """A LoRA file, its new strength, and the first block that has it."""

    block: int
    file: str
    strength: float


def plan_lora_schedule(
    sampler: SamplerConfig, changes: Sequence[tuple[int | float, str, float]], seconds: int | float | None
) -> tuple[ScheduledLora, ...]:
    """Find the first block of each change: of a time in seconds, a file and its strength from then on.

    Raises:
        ValueError: If a time is not within the stream, or a strength is not finite.
    """
    files = [check_loras([(file, strength)])[0] for _, file, strength in changes]
    blocks = [plan_border("lora-at", sampler, second, seconds) for second, *_ in changes]
    return tuple(ScheduledLora(block, *file) for block, file in zip(blocks, files, strict=True))


def with_later_files(loras: GivenLoras, later: Iterable[AnyPath]) -> LoraFiles:
    """Add files that come later, at strength 0, so that nothing is read or compiled when they come."""
    given = dict(check_loras(loras))
    files = [check_loras([(file, 0.0)])[0][0] for file in later]
    return tuple((given | {file: given.get(file, 0.0) for file in files}).items())


def changes_by_block(
    stream: ChunkStream, schedule: Sequence[ScheduledLora], recompute: int | None
) -> dict[int, Callable[[], None]]:
    """Return what changes the LoRAs of a stream at each border of a schedule; the files that it leaves out stay."""

    def change(block: int) -> None:
        new = {each.file: each.strength for each in schedule if each.block == block}
        stream.set_loras(tuple((dict(stream.plan.loras.files) | new).items()), recompute)

    return {each.block: partial(change, each.block) for each in schedule}
