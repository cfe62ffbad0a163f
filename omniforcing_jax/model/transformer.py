"""The dual-stream transformer: weights, text keys and values, prediction.

Patch in, one scan over the stacked layers, head out. Nothing here knows whether the view makes the network a teacher, a
masked student or a stream.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.io.host_array import HostArray
from omniforcing_jax.model.dual_stream import (
    Perturbation,
    Rows,
    Text,
    add_tables,
    dual_stream_layer,
    dual_stream_layer_spec,
    join_layer,
    split_layer,
    table_spec,
    tables_of,
    text_kv_of_layer,
)
from omniforcing_jax.model.eight_bits import eight_bits_spec
from omniforcing_jax.model.layer_list import Layers, is_list, map_layers
from omniforcing_jax.model.view import Times, View
from omniforcing_jax.nn.attention import NO_PAST, Site, Sites
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.mask import AttentionMask, mask_bias
from omniforcing_jax.nn.mlp import Mlp, apply_mlp, mlp_spec
from omniforcing_jax.nn.modulation import (
    TIME_SCALE,
    ScaleShift,
    TimeEmbedding,
    add_table,
    embed_time,
    modulate,
    time_embedding_spec,
)
from omniforcing_jax.nn.norm import layer_norm
from omniforcing_jax.nn.quantised import is_quantised
from omniforcing_jax.nn.stack import is_mixed, restack, scan_layers, unstack
from omniforcing_jax.parallel.sharding import constrain, gather
from omniforcing_jax.parallel.spec import Leaf, Spec, array, normal, stacked, zeros
from omniforcing_jax.streams import Streams, map_streams

SINK_SCALE = 0.02
NO_PERTURBATION = Perturbation()

# For `remat` in training: keep the outputs of projections, recompute the rest. On chime's teacher (batch 8, 5 s, CPU)
# this takes 240 MB instead of 830 and is about a tenth faster, because a scan must write everything that it keeps.
keep_projections = partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=False
)


@struct.dataclass
class StreamEnds:
    """Weights of one stream outside the layers."""

    patchify: Linear
    caption: Mlp | None
    time: TimeEmbedding  # 6 or 9 rows
    cross_time: TimeEmbedding  # 4 rows
    cross_gate_time: TimeEmbedding  # 1 row: of the crossing that this stream receives
    prompt_time: TimeEmbedding | None  # 2 rows
    head_table: Leaf  # [2, D]: shift, scale
    head: Linear


@struct.dataclass
class Transformer:
    """All weights of a dual-stream transformer."""

    video: StreamEnds
    audio: StreamEnds
    layers: Layers  # a DualStreamLayer of leaves [L, ...] and `MixedStack`s, or a list (`list_layers`)
    sinks: Leaf  # [1, sinks, D_a] or None
    keyframe: Leaf = None  # [1, D_v], added to the video tokens that `View.keyframes` marks, or None

    @property
    def ends(self) -> Streams:
        """The StreamEnds of each stream."""
        return Streams(self.video, self.audio)


class Prediction(NamedTuple):
    """The result of one forward.

    Attributes:
        velocity: Noise - x0 of both streams, [B, T, C] and [B, A, C], float32.
        fresh: Sites of KV [L, B, T, N, H] of this forward's own tokens; audio sinks come first. With a list of layers
            it is a tuple of such Sites without L, and keys that were written into a ring are the whole ring's.
    """

    velocity: Streams
    fresh: Layers


class Modulation(NamedTuple):
    """Embedded noise levels of one stream.

    Attributes:
        embedded: For the head.
        rows: For the layers, before their tables are added.
    """

    embedded: Float[Array, "b U D"]
    rows: Rows


class LayerInputs(NamedTuple):
    """Everything that differs from layer to layer: every leaf is [L, ...], or there is a tuple with an entry per layer.

    Attributes:
        params: The layers' weights.
        text_kv: Streams of KV of the prompt.
        past: Sites of cached KV, or None.
        perturbation: What to leave out.
        rows: Streams of modulation Rows with the layers' tables, if they were made before.
    """

    params: Layers
    text_kv: Layers
    past: Layers
    perturbation: Perturbation
    rows: Layers = None


def transformer_spec(config: ModelConfig) -> Transformer:
    """Declare the network's weights."""
    sinks = Spec((1, config.sinks, config.audio.width), (None, None, None), normal(SINK_SCALE))
    return Transformer(
        video=_ends_spec(config, config.video),
        audio=_ends_spec(config, config.audio),
        layers=eight_bits_spec(stacked(dual_stream_layer_spec(config), config.layers), config.eight_bits),
        sinks=sinks if config.sinks else None,
        keyframe=Spec((1, config.video.width), (None, None), zeros) if config.keyframe_embedding else None,
    )


def list_layers(params: Transformer) -> Transformer:
    """Give every layer arrays of its own, and one matrix to the projections that read the same input.

    Nothing is then cut out of a stack or concatenated while the network runs, but each layer is compiled anew. That
    suits streams on one device. Training, meshes and files stack the layers.

    A leaf of the stack may also be a tuple of its rows: so a loader never has a network in memory twice.
    """
    if is_list(params.layers):
        return params
    leaves, form = jax.tree.flatten(params.layers, is_leaf=lambda x: is_list(x) or is_mixed(x))
    layers = [form.unflatten(rows) for rows in zip(*map(unstack, leaves), strict=True)]
    return dataclasses.replace(params, layers=tuple(map(join_layer, layers)))


def stack_layers(params: Transformer) -> Transformer:
    """Undo `list_layers`, as files and fingerprints have the network; each leaf is put together when it is read."""
    if not is_list(params.layers):
        return params
    layers = [split_layer(p, HostArray.split) for p in params.layers]
    leaves, forms = zip(*(jax.tree.flatten(p, is_leaf=is_quantised) for p in layers), strict=True)
    stacks = [restack(rows, HostArray.stack) for rows in zip(*leaves, strict=True)]
    return dataclasses.replace(params, layers=forms[0].unflatten(stacks))


def _ends_spec(config: ModelConfig, stream: StreamConfig) -> StreamEnds:
    width, captions = stream.width, config.caption_channels
    return StreamEnds(
        patchify=linear_spec(stream.latent_channels, width, ("embed", None)),
        caption=None if captions is None else mlp_spec(captions, width, width),
        time=time_embedding_spec(width, 9 if config.text_adaln else 6),
        cross_time=time_embedding_spec(width, 4),
        cross_gate_time=time_embedding_spec(width, 1),
        prompt_time=time_embedding_spec(width, 2) if config.text_needs_sigma else None,
        head_table=table_spec(config, 2, width),
        head=linear_spec(width, stream.latent_channels, (None, "embed")),
    )


def text_kv(
    params: Transformer,
    context_video: Float[Array, "B X _"],
    context_audio: Float[Array, "B X _"],
    mask: Bool[Array, "B X"] | Int[Array, "B X"] | None = None,
    *,
    sigma: Float[Array, " B"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Text:
    """Make the text keys and values of all layers: once per prompt, or once per sigma where they depend on it.

    Args:
        params: The network's weights.
        context_video: Features for the video stream, as wide as the stream if it has no caption projection.
        context_audio: Features for the audio stream.
        mask: Non-zero where a token may be seen; None shows all.
        sigma: Noise level of the samples, for networks whose text keys depend on it.
        dtype: Type to compute in.

    Returns:
        Keys and values [L, B, X, N, H] of both streams with the mask; a tuple per layer for a list of layers. Tokens
        that may be seen come first.

    Raises:
        ValueError: The text keys depend on sigma, and it is missing.
    """
    if params.video.prompt_time is not None and sigma is None:
        raise ValueError("sigma=None: text keys of a network with text AdaLN depend on sigma")
    contexts, attended = Streams(context_video, context_audio), AttentionMask()
    if mask is not None:  # keys have no positions here, so those that are seen may come first: kernels skip the others
        order = jnp.argsort(mask == 0, axis=1, stable=True)
        contexts = map_streams(lambda x: jnp.take_along_axis(x, order[:, :, None], axis=1), contexts)
        seen = jnp.take_along_axis(mask != 0, order, axis=1)
        attended = AttentionMask(bias=mask_bias(seen[:, None, None, :]), is_prefix=True)
    layers = map_layers(lambda p: p.streams, params.layers)
    if is_list(layers):
        layers = Streams(*zip(*layers, strict=True))
    kv = map_streams(
        lambda ends, layers, context: _text_kv_of_stream(ends, layers, context.astype(dtype), sigma),
        params.ends,
        layers,
        contexts,
    )
    return Text(kv=tuple(map(Streams, *kv)) if is_list(params.layers) else kv, site=Site(mask=attended))


@jax.named_scope("text_kv")
def _text_kv_of_stream(
    ends: StreamEnds, layers: Any, context: Float[Array, "B X _"], sigma: Float[Array, " B"] | None
) -> Any:
    if ends.caption is not None:
        context = apply_mlp(ends.caption, context)
    rows = None
    if ends.prompt_time is not None and sigma is not None:
        _, rows = embed_time(ends.prompt_time, TIME_SCALE * sigma[:, None])
    if is_list(layers):
        run = jax.jit(text_kv_of_layer)
        return tuple(run(layer, context, rows) for layer in layers)
    _, kv = scan_layers(lambda carry, layer: (carry, text_kv_of_layer(layer, context, rows)), None, layers)
    return jax.tree.map(lambda x: constrain(x, None, "batch", None, "heads", None), kv)


def predict(
    params: Transformer,
    config: ModelConfig,
    noisy: Streams,
    view: View,
    text: Text,
    *,
    past: Layers = NO_PAST,
    perturbation: Perturbation = NO_PERTURBATION,
    levels: Streams | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: Callable[..., Any] | None = None,
) -> Prediction:
    """Predict the velocity (noise - x0) of both streams.

    Args:
        params: Weights, in any floating type.
        config: The network's config.
        noisy: Noisy tokens, [B, T, C] of video (frame-major, then row, then column) and [B, A, C] of audio without
            sinks.
        view: The regime: masks, rotations and noise levels (model/view.py).
        text: The prompt's keys and values, from `text_kv`.
        past: Keys and values of earlier blocks [L, B, S, N, H] per site, only read.
        perturbation: What to leave out, for guidance.
        levels: The Modulation of each stream with the layers' tables (model/levels.py), where it was made before. The
            view's noise levels are not read then.
        dtype: Type to compute in; norms, softmax, rotations, modulation and the outputs are float32.
        remat: Wraps the body of the scan over layers, such as `keep_projections`, to save memory in training.
    """
    modulation = embed_times(params, config, view) if levels is None else levels
    x, rows = embed_tokens(params, noisy, view, dtype), map_streams(lambda m: m.rows, modulation)
    layer = layer_body(config, view, rows, text.site, dtype)
    inputs = LayerInputs(params.layers, text.kv, past, perturbation, None if levels is None else rows)
    with jax.named_scope("layers"):
        x, fresh = _run_layers(remat(layer) if remat else layer, x, inputs)
    return Prediction(velocity=_velocities(params, x, modulation, view.sinks), fresh=fresh)


def _run_layers(layer: Callable[..., Any], x: Streams, inputs: LayerInputs) -> tuple[Streams, Any]:
    """Scan over stacked layers, or call those of a list one by one; a list's layers that are alike are traced once."""
    if not is_list(inputs.params):
        return scan_layers(layer, x, inputs)
    run, kept = jax.jit(layer), []
    for index, params in enumerate(inputs.params):
        past = inputs.past[index] if is_list(inputs.past) else inputs.past
        left_out, rows = jax.tree.map(lambda x, index=index: x[index], (inputs.perturbation, inputs.rows))
        x, fresh = run(x, LayerInputs(params, inputs.text_kv[index], past, left_out, rows))
        kept.append(fresh)
    return x, tuple(kept)


def embed_times(params: Transformer, config: ModelConfig, view: View) -> Streams:
    """Embed the noise levels of both streams; return the Modulation of each."""
    return embed_levels(params, config, view.times)


def embed_levels(params: Transformer, config: ModelConfig, times: Streams) -> Streams:
    """Embed the Times of both streams; return the Modulation of each."""
    return map_streams(partial(_embed_times, gate_multiplier=config.gate_multiplier), params.ends, times)


@jax.named_scope("time_embedding")
def _embed_times(p: StreamEnds, times: Times, gate_multiplier: float) -> Modulation:
    embedded, main = embed_time(p.time, TIME_SCALE * times.main)
    _, cross = embed_time(p.cross_time, TIME_SCALE * times.cross)
    _, gate = embed_time(p.cross_gate_time, gate_multiplier * times.gate)
    return Modulation(embedded=embedded, rows=Rows(main=main, cross=cross, gate=gate))


@jax.named_scope("patchify")
def embed_tokens(params: Transformer, noisy: Streams, view: View, dtype: DTypeLike) -> Streams:
    """Project tokens to hidden states, [B, T, D] each; mark keyframes, and put sinks in front of audio, if any."""
    video, audio = map_streams(lambda p, x: project(p.patchify, x.astype(dtype)), params.ends, noisy)
    if view.keyframes is not None:
        video += view.keyframes.astype(dtype)[None, :, None] * array(params.keyframe).astype(dtype)[None]
    if view.sinks:
        learned = array(params.sinks).astype(dtype)
        audio = jnp.concatenate([jnp.broadcast_to(learned, (len(audio), *learned.shape[1:])), audio], 1)
    return Streams(video, audio)


def layer_body(
    config: ModelConfig, view: View, rows: Streams, text_site: Site, dtype: DTypeLike
) -> Callable[[Streams, LayerInputs], tuple[Streams, Sites]]:
    """Build the body of the scan over layers: from hidden states to the next ones and the layer's own K/V.

    `rows` are without tables. They are not read where a layer has rows of its own.
    """
    specs = dual_stream_layer_spec(config)

    def body(x: Streams, layer: LayerInputs) -> tuple[Streams, Sites]:
        x = jax.tree.map(lambda x: constrain(x, "batch", None, None), x)
        # This shards their gradients too. XLA alone sums those of per-token levels over all chips in every layer.
        own = rows if layer.rows is None else layer.rows
        own = jax.tree.map(lambda x: constrain(x, "batch", None, None, None), own)
        params, text = gather(layer.params, specs, dtype), Text(kv=layer.text_kv, site=text_site)
        own = add_tables(tables_of(params), own) if layer.rows is None else own
        return dual_stream_layer(params, x, view.sites, own, text, layer.past, layer.perturbation)

    return body


def _velocities(params: Transformer, x: Streams, modulation: Streams, sinks: int) -> Streams:
    embedded_v, embedded_a = modulation.video.embedded, modulation.audio.embedded
    if embedded_a.shape[1] > 1:  # one level per token or group, sinks included
        embedded_a = embedded_a[:, sinks:]
    return Streams(
        video=_head(params.video, x.video, embedded_v), audio=_head(params.audio, x.audio[:, sinks:], embedded_a)
    )


@jax.named_scope("head")
def _head(p: StreamEnds, x: Float[Array, "B T D"], embedded: Float[Array, "b U D"]) -> Float[Array, "B T C"]:
    """Norm, modulate by the time embedding itself, project; all in float32."""
    rows = add_table(array(p.head_table), jnp.stack([embedded, embedded], axis=2))
    velocity = project(p.head, modulate(layer_norm(x.astype(jnp.float32)), ScaleShift(rows[:, :, 0], rows[:, :, 1])))
    return constrain(velocity, "batch", None, None)
