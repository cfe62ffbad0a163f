"""Open a stream: plan the request, load the weights, encode the text."""

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack, overload

from jaxtyping import DTypeLike

from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.loras import GivenLoras, with_loras
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import STUDENT
from omniforcing_jax.rollout import make_prompt_kv
from omniforcing_jax.stream.ahead import ProgramsAhead, compile_ahead
from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.chunk_stream import ChunkStream, Trace, no_trace
from omniforcing_jax.stream.conditioning.condition import Condition, make_tracks
from omniforcing_jax.stream.plan import StreamPlan, plan_stream
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.state import start_state


class RequestOptions(TypedDict, total=False):
    """The fields of `StreamRequest` that `open_stream` takes by name only."""

    height: int | None
    width: int | None
    window: int | None
    steps: int | None
    dtype: DTypeLike
    weights_dtype: str | None
    cache_dtype: str | None
    contexts: text_source.TextSource
    history: int | Literal["exact"] | None
    start: Condition
    drive: Condition
    lookahead: int | None
    camera: str | None
    loras: GivenLoras
    upscale: bool


@overload
def open_stream(
    weights: checks.Weights | None = None,
    prompt: str = "",
    seconds: int | float | None = None,
    seed: int = 0,
    *,
    trace: Trace = no_trace,
    **options: Unpack[RequestOptions],
) -> ChunkStream: ...


@overload
def open_stream(
    weights: checks.Weights | None,
    prompt: list[str] | tuple[str, ...],
    seconds: int | float | None = None,
    seed: int | Sequence[int] = 0,
    *,
    trace: Trace = no_trace,
    **options: Unpack[RequestOptions],
) -> BatchStream: ...


def open_stream(
    weights: checks.Weights | None = None,
    prompt: str | Sequence[str] = (),
    seconds: int | float | None = None,
    seed: int | Sequence[int] = 0,
    *,
    trace: Trace = no_trace,
    **options: Unpack[RequestOptions],
) -> ChunkStream | BatchStream:
    """Open a stream of chunks. The first block is made when the first chunk is taken.

    Args:
        weights: A weights folder, a loaded pipeline, or the name of shipped weights. None is "chime".
        prompt: What to show; required. A sequence of prompts makes a batch on one clock: a `BatchStream`.
        seconds: Length in whole seconds (the stream has one frame more); None never ends.
        seed: Random seed. In a batch, one per row, or a number to which row i adds i.
        trace: Called after each dispatch, see `chunk_stream.Trace`. The text is the step "text".
        **options: The other fields of `StreamRequest`, which describes them: height, width, window, steps, dtype,
            weights_dtype, cache_dtype, contexts, history, start, drive, lookahead, camera, loras, upscale.

    Raises:
        ValueError: In one line and before any work, whatever is wrong with the request.
    """
    weights = STUDENT if weights is None else weights
    rows = prompt if isinstance(prompt, str) else tuple(prompt)
    seeds = seed if isinstance(seed, int) else tuple(seed)
    plan = plan_stream(weights, StreamRequest(prompt=rows, seconds=seconds, seed=seeds, **options))
    request = plan.request
    contexts = text_source.encode_on_disk(weights, plan.config, request.prompts, request.contexts, request.dtype)
    ahead = None if isinstance(weights, Pipeline) else compile_ahead(plan, contexts)
    stream = start_stream(checks.load(weights, plan.config, request.dtype), plan, contexts, trace, ahead)
    return BatchStream(stream) if request.is_batch else stream


def start_stream(
    pipeline: Pipeline,
    plan: StreamPlan,
    contexts: text_source.TextSource = None,
    trace: Trace = no_trace,
    ahead: ProgramsAhead | None = None,
) -> ChunkStream:
    """Start a planned stream on a loaded pipeline. A batch becomes the rows of one `ChunkStream`.

    Args:
        pipeline: Weights and codecs.
        plan: The plan that `plan_stream` made of the request.
        contexts: Text contexts of its prompts; None uses the pipeline's own text encoder.
        trace: See `chunk_stream.Trace`.
        ahead: The programs, if `compile_ahead` has begun them.
    """
    return start_attached(with_loras(pipeline, plan.loras, plan.static.dtype), plan, contexts, trace, ahead)


def start_attached(
    pipeline: Pipeline,
    plan: StreamPlan,
    contexts: text_source.TextSource = None,
    trace: Trace = no_trace,
    ahead: ProgramsAhead | None = None,
) -> ChunkStream:
    """Start a planned stream on a pipeline that has its LoRAs already; arguments as `start_stream`."""
    if ahead is not None:
        ahead.wait_for_start()
    request = plan.request
    features = text_source.encode_text(pipeline, request.prompts, contexts)
    text = make_prompt_kv(pipeline.transformer, *features, static=plan.static)
    trace("text", 0, text)
    state = start_state(plan.static, text, request.seeds, features, plan.history, request.prompts, request.camera)
    return ChunkStream(pipeline, plan, state, trace, make_tracks(pipeline, plan.static, plan.conditioning), ahead)
