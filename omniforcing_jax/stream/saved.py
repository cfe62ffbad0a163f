"""A stream on disk: saved between two blocks, resumed bit by bit in another process.

    state/
      state.json                  which weights and request the stream belongs to, how far it is, and its tensor file
      state-<digits>.safetensors  cache, text, keys and carries

The JSON is the state: it names its tensor file, which never changes once it has been written, and is replaced by one
rename. A process that is killed while it saves leaves the old state or the new one, and at worst a stray file that the
next save removes. Bit-equality holds on the same kind of device and the same version of JAX.
"""

import dataclasses
import json
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from omniforcing_jax.io import tensor_file
from omniforcing_jax.io.atomic_write import AnyPath, check_folder_writable, write_json
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.io.weights import compare_shapes, fill_tree, name_leaves
from omniforcing_jax.model.cache import put_cache
from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, abstract_pipeline, describe
from omniforcing_jax.pipeline.shipped import STUDENT
from omniforcing_jax.rollout import make_prompt_kv
from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.chunk_stream import ChunkStream, StreamState, Trace, no_trace, start_state
from omniforcing_jax.stream.decode import decode_audio, decode_video
from omniforcing_jax.stream.plan import StreamPlan, check_memory, resolve_request
from omniforcing_jax.stream.prompt_change.transition import PromptTransition
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.strict_json import Config, require

FORMAT = 3
STATE = "state.json"
TENSORS = "state-{}.safetensors"
TEXT_KEYS = "prompt/clean/video/k"  # [L, B, X, N, H]
TEXT_MASK = "prompt/clean/site/mask/bias"
COUNTS = {"block": "block", "transition/left": "left", "transition/recompute": "recompute"}
"""Integers of a state that the host counts with, and their names in the JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved(Config):
    """What `state.json` says.

    Attributes:
        format: Of the folder.
        tensors: Name of the tensor file.
        name: What the weights are called.
        fingerprint: Of the weights, as loaded (`Pipeline.fingerprint`).
        weights_dtype: Type that the weights were loaded in.
        block: Blocks made so far.
        blocks: Blocks after which the stream was to end; None is endless.
        key_kind: JAX's name of the random numbers.
        left, recompute: Of the change of its prompt: borders to come, and clean passes at each.
    """

    format: int
    tensors: str
    name: str
    fingerprint: str
    weights_dtype: str
    block: int
    blocks: int | None
    key_kind: str
    left: int
    recompute: int


def save(stream: ChunkStream | BatchStream, folder: AnyPath) -> None:
    """Save a stream between two of its blocks; it can go on afterwards.

    Only one process may save to a folder at a time.

    Args:
        stream: The stream, its last chunk taken.
        folder: Made if absent, like its parents; a state that lies in it stays valid until the new one is complete.

    Raises:
        ValueError: if the folder cannot be written, or if the stream has made the last of a fixed number of blocks:
            that one is not committed, so nothing could follow it, or if latents are still given to it.
    """
    chunks = stream.stream if isinstance(stream, BatchStream) else stream
    if chunks.state.block == chunks.blocks:
        raise ValueError(
            f"the stream has made the last of its {chunks.blocks} blocks, which is not committed: "
            "save it before, or open it without an end (seconds=None)"
        )
    if chunks.tracks.blocks > chunks.state.block:
        raise ValueError(
            f"the stream is given latents for {chunks.tracks.blocks} blocks and has made {chunks.state.block}: "
            "a saved state has no files of others, save it after them"
        )
    check_folder_writable(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pipeline, state = chunks.pipeline, chunks.state
    saved = Saved(
        format=FORMAT,
        tensors=TENSORS.format(uuid.uuid4().hex),
        name=pipeline.config.name,
        fingerprint=pipeline.fingerprint,
        weights_dtype=_dtype_of(pipeline),
        block=state.block,
        blocks=chunks.blocks,
        key_kind=str(jax.random.key_impl(state.keys)),
        left=state.transition.left,
        recompute=state.transition.recompute,
    )
    words = state.prompt_words if chunks.plan.request.is_batch else state.prompt_words[0]
    request = dataclasses.replace(chunks.plan.request, prompt=words)
    values = {**saved.to_dict(), "request": request.to_dict(), "weights": _describe(pipeline.config)}
    write_state(Path(folder), state, values)


def _describe(config: PipelineConfig) -> dict[str, Any]:
    """Return all configs that a stream depends on, as JSON values."""
    assert config.sampler is not None, "only students stream"
    return {**describe(config), "sampler": config.sampler.to_dict(), "resolution": list(config.resolution)}


def write_state(folder: Path, state: StreamState, values: dict[str, Any]) -> None:
    """Write tensors, then the JSON that names them (`values`), then remove what no state names any more."""
    leaves = _storable(state)
    new = folder / values["tensors"]
    layout = {name: (np.dtype(leaf.dtype), tuple(leaf.shape)) for name, leaf in leaves.items()}
    try:
        tensor_file.write_tensors(new, layout, lambda name: np.asarray(leaves[name]))
        with new.open("rb") as file:
            os.fsync(file.fileno())
        write_json(folder / STATE, values)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    for stray in (*folder.glob(TENSORS.format("*")), *folder.glob(f".{STATE}.*")):
        if stray != new:
            stray.unlink(missing_ok=True)


class SavedStream(NamedTuple):
    """What `state.json` holds: its header, what was asked for, and the configs of the weights by component."""

    header: Saved
    request: StreamRequest
    weights: dict[str, Any]


def read_saved(folder: AnyPath) -> SavedStream:
    """Read what a saved state says of itself, without its tensors.

    Raises:
        ValueError: in one line, if there is no state, or none that this version reads.
    """
    path = Path(folder) / STATE
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected a folder that a stream was saved to") from None
    except ValueError:
        raise ValueError(f"{path}: not JSON") from None
    if not isinstance(values, dict) or type(values.get("format")) is not int:
        raise ValueError(f"{path}: not a saved stream: expected a JSON object with format={FORMAT}")
    if values["format"] != FORMAT:
        raise ValueError(
            f"{path}: saved in format {values['format']}, this version reads format {FORMAT}: begin the stream anew"
        )
    parts = {name: values.pop(name, None) for name in ("request", "weights")}
    for name, part in parts.items():
        require(isinstance(part, dict), f"{path}: {name}", part, "must be an object")
    try:
        return SavedStream(Saved.from_dict(values), StreamRequest.from_dict(parts["request"]), parts["weights"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def resume(
    folder: AnyPath,
    weights: checks.Weights | None = None,
    seconds: int | float | None = None,
    *,
    trace: Trace = no_trace,
) -> ChunkStream | BatchStream:
    """Open a saved stream where it was; what follows is bit-equal to what would have followed without the cut.

    Prompt, size, window, steps and type are the saved ones.

    Args:
        folder: What `save` wrote.
        weights: What the stream was made with: a weights folder, a loaded pipeline, or the name of shipped weights.
            None is "chime".
        seconds: How much longer it goes on, in whole seconds; None keeps the end that it was opened with, if any.
        trace: As for `open_stream`.

    Returns:
        A stream of the kind that was saved.

    Raises:
        ValueError: in one line and before any block is made, if the state is damaged or belongs to other weights, or
            if so many seconds are no whole number of blocks.
    """
    saved, request, configs = read_saved(folder)
    weights = STUDENT if weights is None else weights
    config = checks.config_of(weights)
    checks.student_sampler(config)
    _check_config(folder, saved, configs, config, weights)
    plan = resolve_request(config, request)
    plan = plan._replace(blocks=saved.blocks if seconds is None else saved.block + _count_more(plan, saved, seconds))
    file, abstract = _open_state(Path(folder), saved, plan)
    check_memory(plan, jnp.dtype(saved.weights_dtype), isinstance(weights, Pipeline))
    pipeline = checks.load(weights, config, jnp.dtype(saved.weights_dtype))
    if pipeline.fingerprint != saved.fingerprint:
        raise ValueError(
            f"{folder}: the state belongs to other weights ({saved.name!r}, {saved.fingerprint[:12]}) than given "
            f"({config.name!r}, {pipeline.fingerprint[:12]})"
        )
    state = _read_state(file, abstract, saved)
    stream = ChunkStream(pipeline, plan, dataclasses.replace(state, cache=put_cache(state.cache)), trace)
    return BatchStream(stream) if request.is_batch else stream


def _check_config(
    folder: AnyPath, saved: Saved, configs: dict[str, Any], config: PipelineConfig, weights: checks.Weights
) -> None:
    mine = dict(_flat(_describe(config)))
    theirs = dict(_flat(configs))
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"{folder}: the state belongs to other weights than {config.name!r}: "
                f"{name}={theirs.get(name)!r}, expected {mine.get(name)!r}"
            )
    if isinstance(weights, Pipeline) and _dtype_of(weights) != saved.weights_dtype:
        raise ValueError(
            f"{folder}: the state belongs to {saved.weights_dtype} weights, given are {_dtype_of(weights)}"
        )


def _flat(values: Any, name: str = "") -> list[tuple[str, Any]]:
    """List the leaves of nested JSON objects by dotted names."""
    if not isinstance(values, dict):
        return [(name, values)]
    return [leaf for key, value in values.items() for leaf in _flat(value, f"{name}.{key}" if name else key)]


def _dtype_of(pipeline: Pipeline) -> str:
    return str(jax.tree.leaves(pipeline.transformer)[0].dtype)


def _count_more(plan: StreamPlan, saved: Saved, seconds: int | float) -> int:
    layout = plan.static.sampler.layout
    rest = seconds - (layout.first_seconds if saved.block == 0 else 0)
    step = layout.step_seconds
    first = layout.first_seconds if saved.block == 0 else 0
    require(rest >= 0 and rest % step == 0, "seconds", seconds, f"must be {first} + {step} j, counted from the cut")
    return int(rest // step) + (saved.block == 0)


def _storable(state: StreamState) -> dict[str, Any]:
    """List the tensors of a state by name: keys as numbers; what the host counts is in the JSON."""
    return _without_counts(dataclasses.replace(state, keys=jax.random.key_data(state.keys)))


def _without_counts(state: StreamState) -> dict[str, Any]:
    return {name: leaf for name, leaf in name_leaves(state).items() if name not in COUNTS}


def _open_state(folder: Path, saved: Saved, plan: StreamPlan) -> tuple[tensor_file.TensorFile, StreamState]:
    """Check that the tensor file holds just what a state of this request is made of; reads its header only."""
    file = open_tensors(folder / saved.tensors)
    text = file.shapes.get(TEXT_KEYS, ())
    require(len(text) == 5, f"{file.path}: {TEXT_KEYS}", text, "must be [layers, rows, tokens, heads, size]")
    abstract = _abstract_state(plan, saved, text[2], TEXT_MASK in file.entries)
    wanted = _without_counts(abstract)
    compare_shapes(file.shapes, {name: tuple(leaf.shape) for name, leaf in wanted.items()}, str(file.path))
    for name, leaf in wanted.items():
        require(
            file.entries[name].dtype == leaf.dtype,
            f"{file.path}: {name}",
            file.entries[name].dtype,
            f"expected {leaf.dtype}",
        )
    return file, abstract


def _abstract_state(plan: StreamPlan, saved: Saved, tokens: int, has_mask: bool) -> StreamState:
    """Return the shapes of a state: of a new one, and of what its decoders carry from block 0 on."""
    static, prompts = plan.static, plan.request.prompts
    model, layout, rows = static.model, static.sampler.layout, len(prompts)
    shapes = abstract_pipeline(plan.config, jnp.dtype(saved.weights_dtype))
    widths = plan.config.context_widths
    mask: Any = jax.ShapeDtypeStruct((rows, tokens), jnp.int32) if has_mask else None
    video, audio = (_floats(rows, tokens, width) for width in widths)
    words = text_source.TextContexts(video, audio, mask)

    def begin(transformer: PyTree, words: text_source.TextContexts) -> tuple[Any, ...]:
        prompt = make_prompt_kv(transformer, *words, static=static)
        state = start_state(static, prompt, range(rows), words, plan.history)
        return state.cache, state.prompt, jax.random.key_data(state.keys), state.history

    cache, prompt, keys, history = jax.eval_shape(begin, shapes.transformer, words)
    transition = PromptTransition(now=words, goal=words, left=saved.left, recompute=saved.recompute)
    picture = sound = None
    if saved.block:
        audio = _floats(rows, layout.first_a, model.audio.latent_channels)
        sound = jax.eval_shape(decode_audio, shapes.codecs, audio, None)[1]
    for k in range(min(saved.block, 2 + plan.lookahead)):  # by then as many latents are held as ever
        tokens = layout.block(k).video_frames * static.grid[0] * static.grid[1]
        render = partial(decode_video, grid=static.grid, dtype=static.dtype, lookahead=plan.lookahead)
        video = _floats(rows, tokens, model.video.latent_channels)
        picture = jax.eval_shape(render, shapes.codecs, video, picture)[1]
    return StreamState(cache, prompt, keys, picture, sound, saved.block, transition, history, prompts)


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _read_state(file: tensor_file.TensorFile, abstract: StreamState, saved: Saved) -> StreamState:
    # Copied: JAX would take an array of NumPy's as it is, and the next block donates it.
    named = {name: jnp.array(file.read(name)) for name in file.entries}
    counts = {name: getattr(saved, field) for name, field in COUNTS.items()}
    state = fill_tree(abstract, {**named, **counts})
    return dataclasses.replace(state, keys=jax.random.wrap_key_data(state.keys, impl=saved.key_kind))
