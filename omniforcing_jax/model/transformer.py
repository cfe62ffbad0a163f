"""The dual-stream transformer: parameters, text keys and values, prediction.

Patch in, one scan over the stacked layers, head out. Nothing here knows whether the view makes it
a teacher, a masked student or a stream.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.model.dual_stream import (
    DualStreamLayer,
    Perturbation,
    Rows,
    Text,
    dual_stream_layer,
    dual_stream_layer_spec,
    text_kv_of_layer,
)
from omniforcing_jax.model.view import Times, View
from omniforcing_jax.nn.attention import KV, NO_PAST, Site, Sites
from omniforcing_jax.nn.linear import Linear, linear_spec, project
from omniforcing_jax.nn.mask import AttentionMask, mask_bias
from omniforcing_jax.nn.mlp import Mlp, apply_mlp, mlp_spec
from omniforcing_jax.nn.modulation import (
    TIME_SCALE,
    Shifted,
    TimeEmbedding,
    add_table,
    embed_time,
    modulate,
    time_embedding_spec,
)
from omniforcing_jax.nn.norm import layer_norm
from omniforcing_jax.parallel.sharding import constrain, gather
from omniforcing_jax.parallel.spec import Leaf, Spec, normal, stacked

SINK_SCALE = 0.02
NO_PERTURBATION = Perturbation()

# For `remat` in training: keep what projections give, recompute the rest. On chime's teacher (batch 8, 5 s, CPU) this
# takes 240 MB instead of 830 and is about a tenth faster, because a scan must write everything it keeps.
keep_projections = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=False
)


@struct.dataclass
class StreamEnds:
    """What one stream has outside the layers."""

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
    """All parameters of a dual-stream transformer."""

    video: StreamEnds
    audio: StreamEnds
    layers: DualStreamLayer  # every leaf [L, ...]
    sinks: Leaf  # [1, N, Da] or None


class Prediction(NamedTuple):
    """What one forward gives: velocities in float32 and the keys and values of its own tokens."""

    video: Float[Array, "B T C"]
    audio: Float[Array, "B A C"]
    fresh: Sites  # of KV, [L, B, tokens, N, H]; audio sinks come first


def transformer_spec(config: ModelConfig) -> Transformer:
    """Declare the network's weights."""
    sinks = Spec((1, config.sinks, config.audio.width), (None, None, None), normal(SINK_SCALE))
    return Transformer(
        video=_ends_spec(config, config.video),
        audio=_ends_spec(config, config.audio),
        layers=stacked(dual_stream_layer_spec(config), config.layers),
        sinks=sinks if config.sinks else None,
    )


def _ends_spec(config: ModelConfig, stream: StreamConfig) -> StreamEnds:
    width, captions = stream.width, config.caption_channels
    return StreamEnds(
        patchify=linear_spec(stream.latent_channels, width, ("embed", None)),
        caption=None if captions is None else mlp_spec(captions, width, width),
        time=time_embedding_spec(width, 9 if config.text_adaln else 6),
        cross_time=time_embedding_spec(width, 4),
        cross_gate_time=time_embedding_spec(width, 1),
        prompt_time=time_embedding_spec(width, 2) if config.text_adaln else None,
        head_table=Spec((2, width), (None, None), normal(SINK_SCALE)),
        head=linear_spec(width, stream.latent_channels, (None, "embed")),
    )


def text_kv(
    params: Transformer,
    context_video: Float[Array, "B X Cv"],
    context_audio: Float[Array, "B X Ca"],
    mask: Bool[Array, "B X"] | Int[Array, "B X"] | None = None,
    *,
    sigma: Float[Array, " B"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Text:
    """Make the text keys and values of all layers: once per prompt, or with text AdaLN once per sigma.

    Args:
      params: the network's parameters.
      context_video: features for the video stream (as wide as the stream where it has no caption projection).
      context_audio: features for the audio stream.
      mask: non-zero where a token may be seen; None sees all.
      sigma: noise level of the samples, for text AdaLN only.
      dtype: type to compute in.

    Returns:
      Keys and values [L, B, X, N, H] of both streams with the mask.

    Raises:
      ValueError: if the network has text AdaLN and sigma is missing.
    """
    if params.video.prompt_time is not None and sigma is None:
        raise ValueError("sigma=None: text keys of a network with text AdaLN depend on sigma")
    attended = AttentionMask() if mask is None else AttentionMask(bias=mask_bias(mask[:, None, None, :] != 0))
    return Text(
        video=_text_of_stream(params.video, params.layers.video, context_video.astype(dtype), sigma),
        audio=_text_of_stream(params.audio, params.layers.audio, context_audio.astype(dtype), sigma),
        site=Site(mask=attended),
    )


def _text_of_stream(ends: StreamEnds, layers: Any, context: Array, sigma: Array | None) -> KV:
    if ends.caption is not None:
        context = apply_mlp(ends.caption, context)
    rows = None
    if ends.prompt_time is not None and sigma is not None:
        _, rows = embed_time(ends.prompt_time, TIME_SCALE * sigma[:, None])
    kv = jax.lax.map(lambda layer: text_kv_of_layer(layer, context, rows), layers)
    return jax.tree.map(lambda x: constrain(x, None, "batch", None, "heads", None), kv)


def predict(
    params: Transformer,
    config: ModelConfig,
    video: Float[Array, "B T C"],
    audio: Float[Array, "B A E"],
    view: View,
    text: Text,
    *,
    past: Sites = NO_PAST,
    perturbation: Perturbation = NO_PERTURBATION,
    dtype: DTypeLike = jnp.float32,
    remat: Callable[..., Any] | None = None,
) -> Prediction:
    """Predict the velocity (noise - x0) of both streams.

    Args:
      params: parameters, in any floating type.
      config: what network it is.
      video: noisy video tokens, frame-major, then row, then column.
      audio: noisy audio tokens, without sinks.
      view: the regime: who sees whom, rotations and noise levels (model/view.py).
      text: what `text_kv` made of the prompt.
      past: keys and values of earlier blocks [L, B, S, N, H] per site, read only.
      perturbation: what to leave out, for guidance.
      dtype: type to compute in; norms, softmax, rotations, modulation and the outputs are float32.
      remat: wraps the body of the scan over layers, such as `keep_projections`, to save memory in training.
    """
    streams, fresh = _run(
        params, config, video, audio, view, text, past, perturbation, dtype, remat, lambda video, audio, fresh: fresh
    )
    (hidden_v, embedded_v), (hidden_a, embedded_a) = streams
    sinks = view.sinks
    return Prediction(
        video=_head(params.video, hidden_v, embedded_v),
        audio=_head(params.audio, hidden_a[:, sinks:], embedded_a[:, sinks if embedded_a.shape[1] > 1 else 0 :]),
        fresh=fresh,
    )


def hidden_states(
    params: Transformer,
    config: ModelConfig,
    video: Float[Array, "B T C"],
    audio: Float[Array, "B A E"],
    view: View,
    text: Text,
    *,
    past: Sites = NO_PAST,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "L B T Dv"], Float[Array, "L B S Da"]]:
    """Return the states of both streams after each layer, audio sinks included; arguments as `predict`."""
    _, states = _run(
        params,
        config,
        video,
        audio,
        view,
        text,
        past,
        NO_PERTURBATION,
        dtype,
        None,
        lambda video, audio, fresh: (video, audio),
    )
    return states


def _run(
    params: Transformer,
    config: ModelConfig,
    video: Array,
    audio: Array,
    view: View,
    text: Text,
    past: Sites,
    perturbation: Perturbation,
    dtype: DTypeLike,
    remat: Callable[..., Any] | None,
    emit: Callable[[Array, Array, Sites], Any],
) -> tuple[tuple[tuple[Array, Array], tuple[Array, Array]], Any]:
    """Patch in and scan the layers; what `emit` returns of each layer comes back stacked."""
    embedded_v, rows_v = _embed_times(params.video, view.video, config.gate_multiplier)
    embedded_a, rows_a = _embed_times(params.audio, view.audio, config.gate_multiplier)
    x = project(params.video.patchify, video.astype(dtype))
    y = project(params.audio.patchify, audio.astype(dtype))
    if view.sinks:
        y = jnp.concatenate([jnp.broadcast_to(params.sinks.astype(dtype), (len(y), *params.sinks.shape[1:])), y], 1)

    specs = dual_stream_layer_spec(config)

    def body(state: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], Any]:
        p, text_v, text_a, past_of_layer, perturbation_of_layer = layer
        prompt = Text(video=text_v, audio=text_a, site=text.site)
        video, audio = (constrain(stream, "batch", None, None) for stream in state)
        # Their gradients too: left to itself, XLA sums those of per-token levels over all chips in every layer.
        rows = jax.tree.map(lambda x: constrain(x, "batch", None, None, None), (rows_v, rows_a))
        video, audio, fresh = dual_stream_layer(
            gather(p, specs, dtype), video, audio, view.sites, rows, prompt, past_of_layer, perturbation_of_layer
        )
        return (video, audio), emit(video, audio, fresh)

    scanned = (params.layers, text.video, text.audio, past, perturbation)
    (x, y), emitted = jax.lax.scan(remat(body) if remat else body, (x, y), scanned)
    return ((x, embedded_v), (y, embedded_a)), emitted


def _embed_times(p: StreamEnds, times: Times, gate_multiplier: float) -> tuple[Array, Rows]:
    embedded, main = embed_time(p.time, TIME_SCALE * times.main)
    _, cross = embed_time(p.cross_time, TIME_SCALE * times.cross)
    _, gate = embed_time(p.cross_gate_time, gate_multiplier * times.gate)
    return embedded, Rows(main=main, cross=cross, gate=gate)


def _head(p: StreamEnds, x: Float[Array, "B T D"], embedded: Float[Array, "b U D"]) -> Float[Array, "B T C"]:
    """Norm, modulate by the time embedding itself, project; all in float32."""
    shift, scale = add_table(p.head_table, jnp.stack([embedded, embedded], axis=2))
    velocity = project(p.head, modulate(layer_norm(x.astype(jnp.float32)), Shifted(shift, scale)))
    return constrain(velocity, "batch", None, None)
