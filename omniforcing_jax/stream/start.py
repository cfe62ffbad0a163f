"""From a request to a stream: check everything, load, project the text."""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict, Unpack, overload

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.codecs.video_config import VideoVAEConfig
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.pipeline import budget, checks, text_source
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.rollout import StaticConfig, make_prompt_kv
from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.chunk_stream import ChunkStream, Trace, start_state
from omniforcing_jax.stream.conditioning.condition import (
    NO_CONDITION,
    Condition,
    ConditioningPlan,
    make_tracks,
    plan_conditioning,
)
from omniforcing_jax.stream.working_memory import working_bytes
from omniforcing_jax.strict_json import require


class StreamPlan(NamedTuple):
    """A request that was checked.

    Attributes:
        config: The weights' configs.
        static: What is static in the stream's programs.
        blocks: Length of the stream; None is endless.
        history: Later blocks whose latents are kept.
        conditioning: What the stream begins from, and what drives it.
        lookahead: Latent frames that the picture is held back.
    """

    config: PipelineConfig
    static: StaticConfig
    blocks: int | None
    history: int = 0
    conditioning: ConditioningPlan = ConditioningPlan()
    lookahead: int = 0


LOOKAHEAD = 3
"""Latent frames, one second: the default for decoders that are not causal (experiments/LOG.md has the errors)."""

Prompts = str | Sequence[str]
"""What to show: one prompt, or one for each row of a batch."""


def plan_stream(
    weights: checks.Weights,
    prompt: Prompts,
    seconds: int | float | None,
    *,
    height: int | None = None,
    width: int | None = None,
    window: int | None = None,
    steps: int | None = None,
    dtype: DTypeLike = jnp.float32,
    contexts: text_source.TextSource = None,
    history: int | None = None,
    start: Condition = NO_CONDITION,
    drive: Condition = NO_CONDITION,
    lookahead: int | None = None,
) -> StreamPlan:
    """Check a request, without loading any weights; arguments as `open_stream`.

    Raises:
        ValueError: in one line, whatever is wrong with it.
    """
    config = checks.config_of(weights)
    sampler = checks.adjust_sampler(checks.student_sampler(config), window, steps)
    checks.check_mesh(config)
    grid = config.grid(height or config.resolution[0], width or config.resolution[1])
    blocks = None if seconds is None else count_blocks(sampler, seconds)
    text_source.check_text(config, list_rows(prompt), contexts, weights)
    static = StaticConfig(config.model, sampler, grid, jnp.dtype(dtype))
    depth = max(sampler.past_blocks, history or 0)
    loaded = isinstance(weights, Pipeline)
    conditioning = plan_conditioning(config, static, blocks, start, drive)
    rows = len(list_rows(prompt))
    is_given = conditioning.picture_blocks or conditioning.sound_blocks
    require(rows == 1 or not is_given, "prompt", list_rows(prompt), "must be one: given latents are those of one row")
    ahead = choose_lookahead(config.video_vae, lookahead)
    budget.check_memory(config, dtype, loaded, working_bytes(config, static, rows, depth, ahead))
    return StreamPlan(config, static, blocks, depth, conditioning, ahead)


def choose_lookahead(config: VideoVAEConfig, lookahead: int | None) -> int:
    """Choose how many latent frames the picture is held back: what was asked for, or what suits the decoder.

    Raises:
        ValueError: if it is negative, or not 0 where a causal decoder has no use for it.
    """
    if lookahead is None:
        return 0 if config.causal_decoder else LOOKAHEAD
    require(lookahead >= 0, "lookahead", lookahead, "must not be negative")
    rule = "must be 0, the picture's decoder is causal and looks at nothing ahead"
    require(lookahead == 0 or not config.causal_decoder, "lookahead", lookahead, rule)
    return lookahead


def count_blocks(sampler: SamplerConfig, seconds: int | float) -> int:
    """Count the blocks of a stream of so many whole seconds.

    Raises:
        ValueError: if no stream of this layout is that long; names the nearest lengths.
    """
    return sampler.layout.block_count(latent_frames(sampler.layout.frames_for(seconds)))


def list_rows(prompt: Prompts) -> tuple[str, ...]:
    """List the prompts of all rows.

    Raises:
        ValueError: if there is none.
    """
    rows = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    require(len(rows) > 0, "prompt", prompt, "must be one prompt or a sequence of at least one")
    return rows


def list_seeds(seed: int | Sequence[int], rows: int) -> tuple[int, ...]:
    """List the seeds of all rows: row i of a batch with one seed has seed + i.

    Raises:
        ValueError: if there are more or fewer than rows.
    """
    seeds = tuple(range(seed, seed + rows)) if isinstance(seed, int) else tuple(seed)
    require(len(seeds) == rows, "seed", seed, f"must be one number or one for each of {rows} prompts")
    return seeds


class Options(TypedDict, total=False):
    """What may be given to `open_stream` by name only."""

    height: int | None
    width: int | None
    window: int | None
    steps: int | None
    dtype: DTypeLike
    contexts: text_source.TextSource
    history: int | None
    start: Condition
    drive: Condition
    lookahead: int | None
    trace: Trace


@overload
def open_stream(
    weights: checks.Weights,
    prompt: str,
    seconds: int | float | None = None,
    seed: int = 0,
    **options: Unpack[Options],
) -> ChunkStream: ...


@overload
def open_stream(
    weights: checks.Weights,
    prompt: list[str] | tuple[str, ...],
    seconds: int | float | None = None,
    seed: int | Sequence[int] = 0,
    **options: Unpack[Options],
) -> BatchStream: ...


def open_stream(
    weights: checks.Weights,
    prompt: Prompts,
    seconds: int | float | None = None,
    seed: int | Sequence[int] = 0,
    *,
    height: int | None = None,
    width: int | None = None,
    window: int | None = None,
    steps: int | None = None,
    dtype: DTypeLike = jnp.float32,
    contexts: text_source.TextSource = None,
    history: int | None = None,
    start: Condition = NO_CONDITION,
    drive: Condition = NO_CONDITION,
    lookahead: int | None = None,
    trace: Trace = lambda step, block, outputs: None,
) -> ChunkStream | BatchStream:
    """Open a stream of chunks; the first block is made when the first chunk is asked for.

    Args:
        weights: A weights folder, or a loaded pipeline.
        prompt: What to show. A sequence of prompts makes a batch on one clock: a `BatchStream`, whose row i is the
            stream of prompt i and seed i, whatever its neighbours are (to rounding: 1e-5 of a latent).
        seconds: Length in whole seconds (the stream has one frame more); None never ends.
        seed: Of all noise; of a batch one for each row, or a number that row i adds i to.
        height: Of the picture, in pixels; by default what the weights were trained at.
        width: Of the picture, in pixels; by default what the weights were trained at.
        window: Blocks that a block may see, itself included; 0 fills the horizon; by default the weights' own.
        steps: Denoise steps per block, at most the trained ones.
        dtype: Type to compute in; sound is always made in float32.
        contexts: Text contexts, or a file of them, instead of the weights' own text encoder.
        history: Later blocks whose latents are kept for a change of prompt; by default, and at least, those of the
            window. `replay.exact_depth` says from how many on a recomputed past is exact.
        start: Picture, sound or both that the stream begins from: one frame and whole seconds. `seconds` counts them.
        drive: Picture or sound that the whole stream is made to.
        lookahead: Latent frames (a third of a second each) that the picture is held back, so that a decoder that is
            not causal can see them; by default `LOOKAHEAD`, and none for a causal one.
        trace: Called after each dispatch, see `sampler.Trace`; also with "text".

    Raises:
        ValueError: in one line and before any work, whatever is wrong with the request.
    """
    rows = list_rows(prompt)
    seeds = list_seeds(seed, len(rows))
    plan = plan_stream(
        weights,
        prompt,
        seconds,
        height=height,
        width=width,
        window=window,
        steps=steps,
        dtype=dtype,
        contexts=contexts,
        history=history,
        start=start,
        drive=drive,
        lookahead=lookahead,
    )
    contexts = text_source.read_prompts(weights, plan.config, rows, contexts, dtype)
    stream = _start_rows(checks.load(weights, plan.config, dtype), plan, rows, seeds, contexts, trace)
    return stream if isinstance(prompt, str) else BatchStream(stream)


def start_stream(
    pipeline: Pipeline,
    plan: StreamPlan,
    prompt: str,
    seed: int,
    contexts: text_source.TextSource = None,
    trace: Trace = lambda step, block, outputs: None,
) -> ChunkStream:
    """Start a planned stream of a loaded pipeline."""
    return _start_rows(pipeline, plan, (prompt,), (seed,), contexts, trace)


def _start_rows(
    pipeline: Pipeline,
    plan: StreamPlan,
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    contexts: text_source.TextSource,
    trace: Trace,
) -> ChunkStream:
    features = text_source.encode_text(pipeline, prompts, contexts)
    text = make_prompt_kv(pipeline.transformer, *features, static=plan.static)
    trace("text", 0, text)
    state = start_state(plan.static, text, seeds, features, plan.history, prompts)
    tracks = make_tracks(pipeline, plan.static, plan.conditioning)
    return ChunkStream(pipeline, plan.static, state, plan.blocks, trace, tracks, plan.lookahead)
