"""Resume a saved stream in any process: its next blocks are those that it would have made without the cut.

They are equal bit by bit on the same kind of device and the same version of JAX. Everything that can be checked is
checked before any weights are loaded.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from omniforcing_jax.io.atomic_write import AnyPath, hash_file
from omniforcing_jax.io.tensor_file import TensorFile, open_tensors
from omniforcing_jax.io.weights import compare_shapes, fill_tree
from omniforcing_jax.model.cache import put_cache
from omniforcing_jax.model.layer_list import is_list
from omniforcing_jax.model.transformer import list_layers
from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.loras import (
    NO_LORAS,
    Attached,
    GivenLoras,
    LoraFiles,
    Loras,
    change_loras,
    check_loras,
    read_loras,
    with_loras,
)
from omniforcing_jax.pipeline.pipeline import (
    Codecs,
    Pipeline,
    PipelineConfig,
    abstract_pipeline,
    has_list,
    with_weights_dtype,
)
from omniforcing_jax.pipeline.shipped import STUDENT
from omniforcing_jax.rollout import make_prompt_kv
from omniforcing_jax.stream.batch import BatchStream
from omniforcing_jax.stream.camera.path import check_path
from omniforcing_jax.stream.chunk_stream import ChunkStream, Trace, no_trace
from omniforcing_jax.stream.decode import PictureCarry, SoundCarry, decode_audio, decode_video
from omniforcing_jax.stream.plan import StreamPlan, check_stream_memory, resolve_request
from omniforcing_jax.stream.prompt_change.history import check_recompute
from omniforcing_jax.stream.prompt_change.transition import PromptTransition
from omniforcing_jax.stream.saved import (
    COUNTS,
    SavedHeader,
    SavedStream,
    read_saved,
    stream_configs,
    tensors_of,
    weights_dtype,
)
from omniforcing_jax.stream.state import StreamState, start_state
from omniforcing_jax.strict_json import require

TEXT_KEYS = {
    False: "prompt/clean/kv/video/k",
    True: "prompt/clean/kv/0/video/k",
}  # [L, B, X, N, H]; without L in a list
TEXT_MASK = "prompt/clean/site/mask/bias"
BLOCKS_DONE = "cache/blocks_done"


def resume(
    folder: AnyPath,
    weights: checks.Weights | None = None,
    seconds: int | float | None = None,
    *,
    loras: GivenLoras | None = None,
    attached: Attached | None = None,
    trace: Trace = no_trace,
) -> ChunkStream | BatchStream:
    """Open a saved stream where it was. Its next chunks are bit-equal to those of the stream that was not cut.

    Prompt, size, window, steps and type are the saved ones.

    Args:
        folder: A folder that `saved.save` wrote.
        weights: What the stream was made with: a weights folder, a loaded pipeline, or the name of shipped weights.
            None is "chime".
        seconds: Length of the rest in whole seconds; None keeps the end that the stream was opened with, if any.
        loras: The LoRA files of the stream where they are now, with the strengths to go on with. None reads those that
            the state names.
        attached: The weights with LoRAs beside them, as other streams have them; the same files share their memory.
        trace: As for `open_stream`.

    Returns:
        A stream of the kind that was saved.

    Raises:
        ValueError: In one line and before any block is made, if the state is damaged or belongs to other weights, or
            if the rest is no whole number of blocks.
    """
    saved = read_saved(folder)
    weights = STUDENT if weights is None else weights
    header = saved.header
    request = saved.request
    config = with_weights_dtype(checks.pipeline_config(weights, upsampler=request.upscale), request.weights_dtype)
    checks.student_sampler(config)
    _check_weights(folder, saved, config, weights)
    wanted = check_loras(request.loras if loras is None else loras)
    plan = resolve_request(config, dataclasses.replace(request, loras=_as_saved(wanted, request.loras)))
    end = header.blocks if seconds is None else header.block + _count_more(plan, header, seconds)
    plan = plan._replace(blocks=end, loras=_read_loras(folder, header, plan, attached))
    check_recompute(plan.static.sampler, plan.history, header.recompute)
    _check_camera(folder, header, plan)
    file, abstract = _open_state(Path(folder), saved, plan, _has_list(weights, config))
    dtype = jnp.dtype(header.weights_dtype)
    is_shared = attached is not None and plan.loras.factors is attached.loras.factors
    new = plan._replace(loras=NO_LORAS) if is_shared else plan
    check_stream_memory(new, dtype, isinstance(weights, Pipeline))
    pipeline = checks.load(weights, config, dtype)
    _check_fingerprint(folder, header, pipeline)
    state = _read_state(file, abstract, header)
    if attached is None:
        pipeline = with_loras(pipeline, plan.loras, plan.static.dtype)
    else:
        pipeline = change_loras(attached.pipeline, attached.loras, plan.loras, plan.static.dtype)
    stream = ChunkStream(pipeline, plan, dataclasses.replace(state, cache=put_cache(state.cache)), trace)
    if wanted != plan.loras.files:  # what the state holds was made at the strengths of then
        stream.set_loras(wanted, recompute=0)
    return BatchStream(stream) if saved.request.is_batch else stream


def _check_weights(folder: AnyPath, saved: SavedStream, config: PipelineConfig, weights: checks.Weights) -> None:
    """Refuse weights whose configs or type differ from the saved ones; the first difference is named."""
    found, expected = dict(_flatten(saved.weights)), dict(_flatten(stream_configs(config)))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{folder}: the state belongs to other weights than {config.name!r}: "
                f"{name}={found.get(name)!r}, expected {expected.get(name)!r}"
            )
    dtype = saved.header.weights_dtype
    if isinstance(weights, Pipeline) and weights_dtype(weights) != dtype:
        raise ValueError(f"{folder}: the state belongs to {dtype} weights, these are {weights_dtype(weights)}")


def _as_saved(wanted: LoraFiles, saved: GivenLoras) -> LoraFiles:
    """Give the files that are wanted the strengths that they were saved with."""
    if len(wanted) != len(saved):
        return wanted
    return tuple((file, float(strength)) for (file, _), (_, strength) in zip(wanted, saved, strict=True))


def _read_loras(folder: AnyPath, header: SavedHeader, plan: StreamPlan, attached: Attached | None) -> Loras:
    """Read the LoRAs of a saved stream, which must be those that it was made with."""
    files = plan.request.loras
    rule = f"the state was saved with {len(header.loras)} LoRAs; give the same files in the same order"
    require(len(files) == len(header.loras), f"{folder}: lora", [file for file, _ in files], rule)
    for file, _ in files:
        require(Path(file).exists(), f"{folder}: lora", file, "is not there; say with --lora where it is now")
    loras = read_loras(plan.static.model, files, NO_LORAS if attached is None else attached.loras)
    for (file, _), found, expected in zip(files, loras.hashes, header.loras, strict=True):
        require(
            found == expected, f"{folder}: lora", file, "is another file than the one that the stream was made with"
        )
    return loras


def _check_camera(folder: AnyPath, header: SavedHeader, plan: StreamPlan) -> None:
    has_path, has_cameras = header.camera is not None, plan.static.model.camera is not None
    require(has_path == has_cameras, f"{folder}: camera", header.camera, "these weights have other attentions")
    if header.camera is not None:
        check_path(header.camera, plan.static.sampler, header.block)


def _check_fingerprint(folder: AnyPath, header: SavedHeader, pipeline: Pipeline) -> None:
    if pipeline.fingerprint != header.fingerprint:
        raise ValueError(
            f"{folder}: the state belongs to the weights {header.name!r} ({header.fingerprint[:12]}), not to "
            f"{pipeline.config.name!r} ({pipeline.fingerprint[:12]})"
        )


def _flatten(values: Any, name: str = "") -> list[tuple[str, Any]]:
    """List the leaves of nested JSON objects by dotted names."""
    if not isinstance(values, dict):
        return [(name, values)]
    return [leaf for key, value in values.items() for leaf in _flatten(value, f"{name}.{key}" if name else key)]


def _count_more(plan: StreamPlan, header: SavedHeader, seconds: int | float) -> int:
    """Count the blocks of the rest of a stream."""
    layout = plan.static.sampler.layout
    first = layout.first_seconds if header.block == 0 else 0
    rest, step = seconds - first, layout.step_seconds
    require(rest >= 0 and rest % step == 0, "seconds", seconds, f"must be {first} + {step} j, counted from the cut")
    return int(rest // step) + (header.block == 0)


def _has_list(weights: checks.Weights, config: PipelineConfig) -> bool:
    """Whether the layers of the network are, or will be, a list."""
    return is_list(weights.transformer.layers) if isinstance(weights, Pipeline) else has_list(config)


def _open_state(folder: Path, saved: SavedStream, plan: StreamPlan, has_list: bool) -> tuple[TensorFile, StreamState]:
    """Check that the tensor file holds the state of this request, and that its bytes are those that were saved.

    Returns:
        The file, and the state in shapes.
    """
    header = saved.header
    file = open_tensors(folder / header.tensors)
    if TEXT_KEYS[not has_list] in file.shapes:
        places = ("a mesh", "one device")
        raise ValueError(f"{folder}: saved by a stream on {places[not has_list]}: resume it on {places[not has_list]}")
    text = file.shapes.get(TEXT_KEYS[has_list], ())
    require(
        len(text) == 5 - has_list, f"{file.path}: {TEXT_KEYS[has_list]}", text, "must be [..., tokens, heads, size]"
    )
    abstract = _abstract_state(plan, header, text[-3], TEXT_MASK in file.entries, has_list)
    expected = tensors_of(abstract)
    compare_shapes(file.shapes, {name: tuple(leaf.shape) for name, leaf in expected.items()}, str(file.path))
    for name, leaf in expected.items():
        dtype = file.entries[name].dtype
        require(dtype == leaf.dtype, f"{file.path}: {name}", dtype, f"expected {leaf.dtype}")
    if hash_file(file.path) != saved.checksum:
        raise ValueError(f"{file.path}: its bytes are not those that were saved: copy the state again")
    committed = int(file.read(BLOCKS_DONE))
    require(committed == header.block, f"{folder}: block", header.block, f"the cache has {committed} committed blocks")
    return file, abstract


def _abstract_state(plan: StreamPlan, header: SavedHeader, tokens: int, has_mask: bool, has_list: bool) -> StreamState:
    """Return the shapes of a state.

    Args:
        plan: Plan of the stream.
        header: Tells how far it is.
        tokens: Text tokens of its contexts.
        has_mask: Whether its contexts have a mask.
        has_list: Whether the layers of its network are a list.
    """
    static, rows = plan.static, len(plan.request.prompts)
    shapes = abstract_pipeline(plan.config, jnp.dtype(header.weights_dtype))
    mask: Any = jax.ShapeDtypeStruct((rows, tokens), jnp.int32) if has_mask else None
    video, audio = (_floats(rows, tokens, width) for width in plan.config.context_widths)
    contexts = text_source.TextContexts(video, audio, mask)

    def start(transformer: PyTree, contexts: text_source.TextContexts) -> tuple[Any, ...]:
        transformer = list_layers(transformer) if has_list else transformer
        prompt = make_prompt_kv(transformer, *contexts, static=static)
        state = start_state(static, prompt, range(rows), contexts, plan.history)
        return state.cache, state.prompt, jax.random.key_data(state.keys), state.history

    cache, prompt, keys, history = jax.eval_shape(start, shapes.transformer, contexts)
    transition = PromptTransition(now=contexts, goal=contexts, left=header.left, recompute=header.recompute)
    picture, sound = abstract_carries(plan, shapes.codecs, header.block)
    return StreamState(cache, prompt, keys, picture, sound, header.block, transition, history, plan.request.prompts)


def abstract_carries(plan: StreamPlan, codecs: Codecs, block: int) -> tuple[PictureCarry | None, SoundCarry | None]:
    """Return the shapes of the decoders' carries after so many blocks; both are None before block 0."""
    static, rows, picture, sound = plan.static, len(plan.request.prompts), None, None
    model, layout = static.model, static.sampler.layout
    if block:
        sound = jax.eval_shape(decode_audio, codecs, _floats(rows, layout.first_a, model.audio.latent_channels), None)[
            1
        ]
    render = partial(decode_video, grid=static.grid, dtype=static.dtype, lookahead=plan.lookahead)
    for k in range(min(block, 2 + plan.lookahead)):  # later blocks do not change the shapes any more
        tokens = layout.block(k).video_frames * static.grid[0] * static.grid[1]
        picture = jax.eval_shape(render, codecs, _floats(rows, tokens, model.video.latent_channels), picture)[1]
    return picture, sound


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _read_state(file: TensorFile, abstract: StreamState, header: SavedHeader) -> StreamState:
    # Copied, because JAX would use the memory of a NumPy array as it is, and the next block donates it.
    named = {name: jax.device_put(file.read(name), may_alias=False) for name in file.entries}
    counts = {name: getattr(header, field) for name, field in COUNTS.items()}
    state = fill_tree(abstract, {**named, **counts})
    keys = jax.random.wrap_key_data(state.keys, impl=header.key_kind)
    return dataclasses.replace(state, keys=keys, camera=header.camera)
