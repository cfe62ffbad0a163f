"""One dual-stream layer: self-attention, text attention, crossings and feed-forward of both streams.

It serves every regime. What differs between regimes arrives as data: sites, cached keys and modulation. Order of
operations: ltx-core@1.0.0:model/transformer/transformer.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.model.layer_list import Layers
from omniforcing_jax.nn.attention import (
    KV,
    Attention,
    Past,
    Site,
    Sites,
    attend,
    attend_to,
    attention_spec,
    attention_spec_of,
    join_projections,
    project_kv,
    split_projections,
)
from omniforcing_jax.nn.camera import CameraAttention, CameraSite, attend_through_cameras, camera_attention_spec
from omniforcing_jax.nn.mlp import Mlp, apply_mlp, mlp_spec
from omniforcing_jax.nn.modulation import ScaleShift, add_gated, add_table, modulate, modulated_norm
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.parallel.sharding import gather
from omniforcing_jax.parallel.spec import ArrayLeaf, Leaf, Spec, array, normal
from omniforcing_jax.streams import Streams, map_streams

MLP_RATIO = 4
TABLE_SCALE = 0.02


@struct.dataclass
class StreamLayer:
    """Weights of one layer that belong to one stream alone."""

    self_attn: Attention
    text_attn: Attention
    mlp: Mlp
    table: Leaf  # [6 or 9, D]: shift, scale, gate of self-attention, of the mlp and, with text AdaLN, of text
    text_table: Leaf  # [2, D]: shift, scale of the text context, or None


@struct.dataclass
class DualStreamLayer:
    """Weights of one layer; as `Transformer.layers`, every leaf has a leading axis L."""

    video: StreamLayer
    audio: StreamLayer
    a2v: Attention
    v2a: Attention
    cross_table_video: Leaf  # [5, D_v]: scale, shift for a2v; scale, shift for v2a; gate of a2v
    cross_table_audio: Leaf  # [5, D_a]: the same order; gate of v2a
    camera: CameraAttention | None = None  # beside video's self-attention

    @property
    def streams(self) -> Streams:
        """The StreamLayer of each stream."""
        return Streams(self.video, self.audio)


@struct.dataclass
class Rows:
    """Modulation rows of one stream, float32, without or with the tables of one layer or, [L, ...], of all."""

    main: ArrayLeaf  # [B, U, 6 or 9, D]
    cross: ArrayLeaf  # [B, U, 4, D]
    gate: ArrayLeaf  # [B, U, 1, D]


@struct.dataclass
class Text:
    """Keys and values of a prompt for the text attentions, and the mask over its tokens.

    Attributes:
        kv: Streams of KV [L, B, X, N, H], or a tuple with those of each layer; inside a layer, without L.
        site: The mask, the same for both streams.
    """

    kv: Layers
    site: Site


@struct.dataclass
class Perturbation:
    """What a perturbed forward leaves out, per layer and sample: [L, B] of 1 (keep) and 0. None keeps everything.

    Attributes:
        video_self: 0 drops video's whole self-attention (STG as in the bundled core).
        audio_self: The same for audio.
        video_mix: 0 passes each video token's own value through instead (STG as in ltx_core >= 1.0).
        audio_mix: The same for audio.
        a2v: 0 drops the crossing from audio to video.
        v2a: 0 drops the crossing from video to audio.

    Source: ltx-core@1.0.0:guidance/perturbations.py.
    """

    video_self: ArrayLeaf | None = None
    audio_self: ArrayLeaf | None = None
    video_mix: ArrayLeaf | None = None
    audio_mix: ArrayLeaf | None = None
    a2v: ArrayLeaf | None = None
    v2a: ArrayLeaf | None = None


class SelfRows(NamedTuple):
    """Modulation of one stream in one layer, outside the crossings."""

    attn: ScaleShift
    attn_gate: Array
    mlp: ScaleShift
    mlp_gate: Array
    text: ScaleShift | None
    text_gate: Array | None


class CrossRows(NamedTuple):
    """Modulation of one stream in the two crossings of one layer."""

    a2v: ScaleShift
    v2a: ScaleShift
    gate: Array


def stream_layer_spec(config: ModelConfig, stream: StreamConfig) -> StreamLayer:
    """Declare one stream's part of a layer."""
    width, gated = stream.width, config.gated_attention
    return StreamLayer(
        self_attn=attention_spec(width, width, stream.heads, stream.head_size, gated=gated),
        text_attn=attention_spec(width, width, stream.heads, stream.head_size, gated=gated),
        mlp=mlp_spec(width, MLP_RATIO * width, width, bias=stream.mlp_bias),
        table=table_spec(config, 9 if config.text_adaln else 6, width),
        text_table=table_spec(config, 2, width) if config.text_adaln else None,
    )


def table_spec(config: ModelConfig, rows: int, width: int) -> Spec:
    """Declare a modulation table."""
    dtype = jnp.float32 if config.float32_tables else None
    return Spec((rows, width), (None, None), normal(TABLE_SCALE), dtype)


def dual_stream_layer_spec(config: ModelConfig) -> DualStreamLayer:
    """Declare one layer; both crossings have the audio stream's heads."""
    video, audio, gated = config.video, config.audio, config.gated_attention
    return DualStreamLayer(
        video=stream_layer_spec(config, video),
        audio=stream_layer_spec(config, audio),
        a2v=attention_spec(video.width, audio.width, audio.heads, audio.head_size, gated=gated),
        v2a=attention_spec(audio.width, video.width, audio.heads, audio.head_size, gated=gated),
        cross_table_video=table_spec(config, 5, video.width),
        cross_table_audio=table_spec(config, 5, audio.width),
        camera=None if config.camera is None else camera_attention_spec(video.width, config.camera),
    )


def join_layer(p: DualStreamLayer) -> DualStreamLayer:
    """Put the projections of one input into one matrix, in every attention of a layer."""
    return _map_attentions(p, partial(join_projections, is_self=True), partial(join_projections, is_self=False))


def split_layer(p: DualStreamLayer, split: Callable[[Any, int], Sequence[Any]]) -> DualStreamLayer:
    """Undo `join_layer`; `split` cuts a leaf into as many equal parts."""
    own = partial(split_projections, split=split)
    return _map_attentions(p, own, own)


def _map_attentions(
    p: DualStreamLayer, of_self: Callable[[Attention], Attention], of_others: Callable[[Attention], Attention]
) -> DualStreamLayer:
    """Replace the self-attentions, and all others."""

    def of_stream(p: StreamLayer) -> StreamLayer:
        return dataclasses.replace(p, self_attn=of_self(p.self_attn), text_attn=of_others(p.text_attn))

    crossings = {"a2v": of_others(p.a2v), "v2a": of_others(p.v2a)}
    return dataclasses.replace(p, video=of_stream(p.video), audio=of_stream(p.audio), **crossings)


def dual_stream_layer(
    p: DualStreamLayer,
    x: Streams,
    sites: Sites,
    rows: Streams,
    text: Text,
    past: Sites,
    perturbation: Perturbation,
) -> tuple[Streams, Sites]:
    """Run one layer.

    Args:
        p: The layer's weights.
        x: Hidden states, [B, T, D_v] and [B, T, D_a]; audio includes its sinks.
        sites: A Site for each causal attention.
        rows: Rows of each stream, with this layer's tables (`add_tables`).
        text: The prompt's keys and values in this layer.
        past: Past of each site, or None.
        perturbation: Masks of this layer, [B] each.

    Returns:
        The new hidden states, and the keys and values that the causal attentions keep (`attend`).
    """
    m = map_streams(lambda rows: _self_rows(rows.main), rows)
    with jax.named_scope("video_self"):
        h, masks = modulated_norm(x.video, m.video.attn), (perturbation.video_self, perturbation.video_mix)
        y, kv_v = _attend_self(p.video, h, sites.video_self, past.video_self, *masks)
        y, kv_camera = _add_camera(p.camera, y, h, sites.camera, past.camera)
        video = add_gated(x.video, y, m.video.attn_gate)
    with jax.named_scope("video_text"):
        video = _attend_text(p.video, video, m.video, text.kv.video, text.site)
    with jax.named_scope("audio_self"):
        h, masks = modulated_norm(x.audio, m.audio.attn), (perturbation.audio_self, perturbation.audio_mix)
        y, kv_a = _attend_self(p.audio, h, sites.audio_self, past.audio_self, *masks)
        audio = add_gated(x.audio, y, m.audio.attn_gate)
    with jax.named_scope("audio_text"):
        audio = _attend_text(p.audio, audio, m.audio, text.kv.audio, text.site)
    x, kv_a2v, kv_v2a = _cross(p, Streams(video, audio), sites, rows, past, perturbation)
    with jax.named_scope("video_mlp"):
        video = _feed_forward(p.video, x.video, m.video)
    with jax.named_scope("audio_mlp"):
        audio = _feed_forward(p.audio, x.audio, m.audio)
    kept = Sites(video_self=kv_v, audio_self=kv_a, a2v=kv_a2v, v2a=kv_v2a, camera=kv_camera)
    return Streams(video, audio), kept


def text_kv_of_layer(p: StreamLayer, context: Float[Array, "B X D"], rows: Float[Array, "b 1 2 D"] | None) -> KV:
    """Keys and values of one layer's text attention; text AdaLN modulates the context, by `rows` if they are given."""
    if p.text_table is not None:
        table = array(p.text_table)
        modulation = table.astype(jnp.float32)[None, None] if rows is None else add_table(table, rows)
        shift, scale = _one_by_one(modulation)
        context = modulate(context, ScaleShift(shift, scale))
    is_joined = p.text_attn.joined is not None  # a list of layers, which is never on a mesh
    attention = p.text_attn if is_joined else gather(p.text_attn, attention_spec_of(p.text_attn), context.dtype)
    return project_kv(attention, context, None)


def _attend_self(
    p: StreamLayer, h: Array, site: Site, past: Past | None, keep: ArrayLeaf | None, mix: ArrayLeaf | None
) -> tuple[Array, KV]:
    y, fresh = attend(p.self_attn, h, h, site, past, mix)
    return _masked(y, keep), fresh


def _add_camera(
    p: CameraAttention | None, y: Array, h: Array, site: CameraSite | None, past: Past | None
) -> tuple[Array, KV | None]:
    """Add camera attention to the output of self-attention; without cameras the network is one that has none."""
    if p is None or site is None:
        return y, None
    with jax.named_scope("camera"):
        seen, kept = attend_through_cameras(p, h, site, past)
    return y + seen, kept


def _attend_text(p: StreamLayer, x: Array, m: SelfRows, text: KV, site: Site) -> Array:
    h = rms_norm(x) if m.text is None else modulated_norm(x, m.text)
    return add_gated(x, attend_to(p.text_attn, h, text, site), m.text_gate)


def _feed_forward(p: StreamLayer, x: Array, m: SelfRows) -> Array:
    return add_gated(x, apply_mlp(p.mlp, modulated_norm(x, m.mlp)), m.mlp_gate)


def _cross(
    p: DualStreamLayer, x: Streams, sites: Sites, rows: Streams, past: Sites, perturbation: Perturbation
) -> tuple[Streams, KV, KV]:
    """Attend from each stream to the other; both read the states from before either update."""
    v, a = map_streams(_cross_rows, rows)
    norm = map_streams(rms_norm, x)
    with jax.named_scope("a2v"):
        y, kv_a2v = attend(p.a2v, modulate(norm.video, v.a2v), modulate(norm.audio, a.a2v), sites.a2v, past.a2v)
        video = add_gated(x.video, _masked(y, perturbation.a2v), v.gate)
    with jax.named_scope("v2a"):
        y, kv_v2a = attend(p.v2a, modulate(norm.audio, a.v2a), modulate(norm.video, v.v2a), sites.v2a, past.v2a)
        audio = add_gated(x.audio, _masked(y, perturbation.v2a), a.gate)
    return Streams(video, audio), kv_a2v, kv_v2a


class Tables(NamedTuple):
    """The tables of one layer, or of stacked ones.

    Attributes:
        own: Of each stream.
        cross: Of each stream's crossings.
    """

    own: Streams
    cross: Streams


def tables_of(p: DualStreamLayer) -> Tables:
    """Take the tables out of a layer, or out of stacked ones."""
    return Tables(map_streams(lambda layer: layer.table, p.streams), Streams(p.cross_table_video, p.cross_table_audio))


@jax.named_scope("modulation")
def add_tables(tables: Tables, rows: Streams) -> Streams:
    """Add a layer's tables to the rows of each stream."""

    def add(own: Leaf, cross_table: Leaf, rows: Rows) -> Rows:
        table, cross = array(own), array(cross_table)
        return Rows(add_table(table, rows.main), add_table(cross[:4], rows.cross), add_table(cross[4:], rows.gate))

    return map_streams(add, tables.own, tables.cross, rows)


def _self_rows(rows: Float[Array, "B U r D"]) -> SelfRows:
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *text = _one_by_one(rows)
    return SelfRows(
        attn=ScaleShift(shift, scale),
        attn_gate=gate,
        mlp=ScaleShift(mlp_shift, mlp_scale),
        mlp_gate=mlp_gate,
        text=ScaleShift(text[0], text[1]) if text else None,
        text_gate=text[2] if text else None,
    )


def _cross_rows(rows: Rows) -> CrossRows:
    """Name the rows; here the scale comes first, unlike everywhere else."""
    a2v_scale, a2v_shift, v2a_scale, v2a_shift = _one_by_one(rows.cross)
    (gate,) = _one_by_one(rows.gate)
    return CrossRows(a2v=ScaleShift(a2v_shift, a2v_scale), v2a=ScaleShift(v2a_shift, v2a_scale), gate=gate)


def _one_by_one(rows: Float[Array, "B U r D"]) -> list[Float[Array, "B U D"]]:
    return [rows[:, :, i] for i in range(rows.shape[2])]


def _masked(y: Array, keep: ArrayLeaf | None) -> Array:
    """Zero the samples that a perturbation leaves out."""
    return y if keep is None else y * keep.astype(y.dtype)[:, None, None]
