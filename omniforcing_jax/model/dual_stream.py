"""One dual-stream layer: self-attention, text, crossing and feed-forward of both streams.

It serves every regime; what differs between them comes in as the sites, the past and the
modulation. Order of operations: ltx-core@1.0.0:model/transformer/transformer.py.
"""

from typing import NamedTuple

from flax import struct
from jaxtyping import Array, Float

from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.nn.attention import (
    KV,
    Attention,
    Site,
    Sites,
    attend,
    attend_to,
    attention_spec,
    attention_spec_of,
    project_kv,
)
from omniforcing_jax.nn.mlp import Mlp, apply_mlp, mlp_spec
from omniforcing_jax.nn.modulation import Shifted, add_gated, add_table, modulate, modulated_norm
from omniforcing_jax.nn.norm import rms_norm
from omniforcing_jax.parallel.sharding import gather
from omniforcing_jax.parallel.spec import Leaf, Spec, normal

MLP_RATIO = 4
TABLE_SCALE = 0.02


@struct.dataclass
class StreamLayer:
    """What one layer holds for one stream alone."""

    self_attn: Attention
    text_attn: Attention
    mlp: Mlp
    table: Leaf  # [6 or 9, D]: shift, scale, gate of self-attention, of the mlp and, with text AdaLN, of text
    text_table: Leaf  # [2, D]: shift, scale of the text context, or None


@struct.dataclass
class DualStreamLayer:
    """One layer; as `Transformer.layers`, every leaf has a leading axis L."""

    video: StreamLayer
    audio: StreamLayer
    a2v: Attention
    v2a: Attention
    cross_table_video: Leaf  # [5, Dv]: scale, shift for a2v; scale, shift for v2a; gate of a2v
    cross_table_audio: Leaf  # [5, Da]: the same order; gate of v2a


@struct.dataclass
class Rows:
    """Modulation rows of one stream before the layers' tables are added, float32."""

    main: Leaf  # [B, U, 6 or 9, D]
    cross: Leaf  # [B, U, 4, D]
    gate: Leaf  # [B, U, 1, D]


@struct.dataclass
class Text:
    """Keys and values that the prompt gives to the text attentions, and which of them may be seen."""

    video: KV
    audio: KV
    site: Site


@struct.dataclass
class Perturbation:
    """What a perturbed forward leaves out, per layer and sample: [L, B] of 1 (keep) and 0; None keeps all.

    Attributes:
      video_self, audio_self: 0 drops the whole self-attention (bundled core's meaning of STG).
      video_mix, audio_mix: 0 passes each token's own value through instead (ltx_core >= 1.0's meaning).
      a2v, v2a: 0 drops the crossing.

    Source: ltx-core@1.0.0:guidance/perturbations.py.
    """

    video_self: Leaf = None
    audio_self: Leaf = None
    video_mix: Leaf = None
    audio_mix: Leaf = None
    a2v: Leaf = None
    v2a: Leaf = None


class SelfRows(NamedTuple):
    """One stream's own modulation in one layer."""

    attn: Shifted
    attn_gate: Array
    mlp: Shifted
    mlp_gate: Array
    text: Shifted | None
    text_gate: Array | None


class CrossRows(NamedTuple):
    """One stream's part in the two crossings of one layer."""

    a2v: Shifted
    v2a: Shifted
    gate: Array


def stream_layer_spec(config: ModelConfig, stream: StreamConfig) -> StreamLayer:
    """Declare one stream's part of a layer."""
    width, gated = stream.width, config.gated_attention
    rows = 9 if config.text_adaln else 6
    return StreamLayer(
        self_attn=attention_spec(width, width, stream.heads, stream.head_size, gated=gated),
        text_attn=attention_spec(width, width, stream.heads, stream.head_size, gated=gated),
        mlp=mlp_spec(width, MLP_RATIO * width, width),
        table=Spec((rows, width), (None, None), normal(TABLE_SCALE)),
        text_table=Spec((2, width), (None, None), normal(TABLE_SCALE)) if config.text_adaln else None,
    )


def dual_stream_layer_spec(config: ModelConfig) -> DualStreamLayer:
    """Declare one layer; both crossings have the audio stream's heads."""
    video, audio, gated = config.video, config.audio, config.gated_attention
    return DualStreamLayer(
        video=stream_layer_spec(config, video),
        audio=stream_layer_spec(config, audio),
        a2v=attention_spec(video.width, audio.width, audio.heads, audio.head_size, gated=gated),
        v2a=attention_spec(audio.width, video.width, audio.heads, audio.head_size, gated=gated),
        cross_table_video=Spec((5, video.width), (None, None), normal(TABLE_SCALE)),
        cross_table_audio=Spec((5, audio.width), (None, None), normal(TABLE_SCALE)),
    )


def dual_stream_layer(
    p: DualStreamLayer,
    video: Float[Array, "B T D"],
    audio: Float[Array, "B A E"],
    sites: Sites,
    rows: tuple[Rows, Rows],
    text: Text,
    past: Sites,
    perturbation: Perturbation,
) -> tuple[Float[Array, "B T D"], Float[Array, "B A E"], Sites]:
    """Run one layer; also returns the keys and values of the four causal attentions."""
    own_v, own_a = _self_rows(p.video.table, rows[0].main), _self_rows(p.audio.table, rows[1].main)
    video, kv_v = _attend_self(
        p.video, video, own_v, sites.video_self, past.video_self, perturbation.video_self, perturbation.video_mix
    )
    video = _read_text(p.video, video, own_v, text.video, text.site)
    audio, kv_a = _attend_self(
        p.audio, audio, own_a, sites.audio_self, past.audio_self, perturbation.audio_self, perturbation.audio_mix
    )
    audio = _read_text(p.audio, audio, own_a, text.audio, text.site)
    video, audio, kv_a2v, kv_v2a = _cross(p, video, audio, sites, rows, past, perturbation)
    video = add_gated(video, apply_mlp(p.video.mlp, modulated_norm(video, own_v.mlp)), own_v.mlp_gate)
    audio = add_gated(audio, apply_mlp(p.audio.mlp, modulated_norm(audio, own_a.mlp)), own_a.mlp_gate)
    return video, audio, Sites(video_self=kv_v, audio_self=kv_a, a2v=kv_a2v, v2a=kv_v2a)


def text_kv_of_layer(p: StreamLayer, context: Float[Array, "B X D"], rows: Leaf) -> KV:
    """Keys and values of one layer's text attention; `rows` [B, 1, 2, D] modulate the context (text AdaLN) or None."""
    if p.text_table is not None:
        shift, scale = add_table(p.text_table, rows)
        context = modulate(context, Shifted(shift, scale))
    attention = gather(p.text_attn, attention_spec_of(p.text_attn), context.dtype)
    return project_kv(attention, context, None)


def _attend_self(
    p: StreamLayer, x: Array, m: SelfRows, site: Site, past: KV | None, perturbation: Leaf, mix: Leaf
) -> tuple[Array, KV]:
    h = modulated_norm(x, m.attn)
    y, fresh = attend(p.self_attn, h, h, site, past, mix)
    return add_gated(x, _kept(y, perturbation), m.attn_gate), fresh


def _read_text(p: StreamLayer, x: Array, m: SelfRows, text: KV, site: Site) -> Array:
    h = rms_norm(x) if m.text is None else modulated_norm(x, m.text)
    return add_gated(x, attend_to(p.text_attn, h, text, site), m.text_gate)


def _cross(
    p: DualStreamLayer,
    video: Array,
    audio: Array,
    sites: Sites,
    rows: tuple[Rows, Rows],
    past: Sites,
    perturbation: Perturbation,
) -> tuple[Array, Array, KV, KV]:
    """Let each stream read the other; both read the states from before either update."""
    v, a = _cross_rows(p.cross_table_video, rows[0]), _cross_rows(p.cross_table_audio, rows[1])
    norm_v, norm_a = rms_norm(video), rms_norm(audio)
    from_audio, kv_a2v = attend(p.a2v, modulate(norm_v, v.a2v), modulate(norm_a, a.a2v), sites.a2v, past.a2v)
    from_video, kv_v2a = attend(p.v2a, modulate(norm_a, a.v2a), modulate(norm_v, v.v2a), sites.v2a, past.v2a)
    video = add_gated(video, _kept(from_audio, perturbation.a2v), v.gate)
    audio = add_gated(audio, _kept(from_video, perturbation.v2a), a.gate)
    return video, audio, kv_a2v, kv_v2a


def _self_rows(table: Leaf, rows: Array) -> SelfRows:
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *text = add_table(table, rows)
    return SelfRows(
        attn=Shifted(shift, scale),
        attn_gate=gate,
        mlp=Shifted(mlp_shift, mlp_scale),
        mlp_gate=mlp_gate,
        text=Shifted(text[0], text[1]) if text else None,
        text_gate=text[2] if text else None,
    )


def _cross_rows(table: Leaf, rows: Rows) -> CrossRows:
    """Name the rows; here the scale comes first, unlike everywhere else."""
    a2v_scale, a2v_shift, v2a_scale, v2a_shift = add_table(table[:4], rows.cross)
    (gate,) = add_table(table[4:], rows.gate)
    return CrossRows(a2v=Shifted(a2v_shift, a2v_scale), v2a=Shifted(v2a_shift, v2a_scale), gate=gate)


def _kept(y: Array, perturbation: Leaf) -> Array:
    return y if perturbation is None else y * perturbation.astype(y.dtype)[:, None, None]
