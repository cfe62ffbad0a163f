"""The network under golden weights: parameters through `convert`, recorded rotary tables.

The compiled functions are shared by all golden tests.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import FOLDER, Case, read_json
from layer_states import layer_states
from reference_rotary import from_interleaved, from_split

from converters import convert
from converters.overrides import Overrides
from omniforcing_jax.config import GridPrecision, ModelConfig, RotaryConfig, RotaryKind, StreamConfig
from omniforcing_jax.io.weights import load_component
from omniforcing_jax.layout import FUSED, PREFIX
from omniforcing_jax.model.positions import Rotaries, clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer, predict, text_kv, transformer_spec
from omniforcing_jax.model.view import Times, View
from omniforcing_jax.nn.rope import Rotary, repeat
from omniforcing_jax.parallel.spec import abstract
from omniforcing_jax.streams import Streams

LAYOUTS = {"prefix": PREFIX, "4-3-3-3": FUSED}


run_predict = jax.jit(predict, static_argnames=("config", "dtype", "remat"))
run_layer_states = jax.jit(layer_states, static_argnames=("config", "dtype"))
run_text_kv = jax.jit(text_kv, static_argnames=("dtype",))


def make_config(weights: str, rope: str, freq_grid: str, gate_multiplier: float, **changes) -> ModelConfig:
    """Build the network's config from the JSON of its weights and what a case says about their use."""
    sizes = read_json("weights_main")["config"] | read_json(weights)["config"]
    seconds, rows, columns = sizes["positional_embedding_max_pos"]
    assert rows == columns
    assert sizes["audio_positional_embedding_max_pos"] == [seconds]
    return ModelConfig(
        layers=sizes["num_layers"],
        video=StreamConfig(
            latent_channels=sizes["in_channels"],
            heads=sizes["num_attention_heads"],
            head_size=sizes["attention_head_dim"],
        ),
        audio=StreamConfig(
            latent_channels=sizes["audio_in_channels"],
            heads=sizes["audio_num_attention_heads"],
            head_size=sizes["audio_attention_head_dim"],
        ),
        caption_channels=sizes["caption_channels"],
        rotary=RotaryConfig(
            kind=RotaryKind(rope),
            theta=sizes["positional_embedding_theta"],
            max_seconds=float(seconds),
            max_pixels=float(rows),
            grid=GridPrecision(freq_grid),
        ),
        gate_multiplier=float(gate_multiplier),
        sinks=sizes.get("num_audio_sink_tokens", 0),
        **changes,
    )


def config_of(case: Case, uses: dict | None = None, **changes) -> ModelConfig:
    """Build the network's config from a case, or from one of its variants."""
    uses = uses or case.config
    return make_config(
        case.config["weights"], uses["rope"], uses["freq_grid"], uses["av_ca_timestep_scale_multiplier"], **changes
    )


@functools.cache
def load_params(weights: str, config: ModelConfig) -> Transformer:
    """Convert golden weights as users do, and load them."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = FOLDER / f"{weights}.safetensors", Path(folder) / "weights"
        convert.run(convert.prepare([source], out, Overrides(heads=config.video.heads, release="omniforcing")))
        return load_component(out, "transformer", abstract(transformer_spec(config)))


def own_rotaries(config: ModelConfig, frames: int, audio_frames: int, grid) -> Rotaries:
    """Build our own tables of a whole clip."""
    return rotaries(config, make_positions(config, clip_block(frames, audio_frames), tuple(grid)))


def recorded_rotary(case: Case, name: str, config: ModelConfig) -> Rotary:
    """Read a recorded cos and sin as ours."""
    cos, sin = jnp.asarray(case[f"{name}.cos"]), jnp.asarray(case[f"{name}.sin"])
    if config.rotary.kind is RotaryKind.SPLIT:
        return from_split(cos, sin)
    return from_interleaved(cos, sin, config.video.heads)


def cut_rotaries(tables: Rotaries, video: slice, audio: slice) -> Rotaries:
    """Take the rows of some video tokens and audio latents."""

    def cut(rotary: Rotary, rows: slice) -> Rotary:
        return jax.tree.map(lambda x: x[:, rows], rotary)

    return Rotaries(
        video=cut(tables.video, video),
        audio=cut(tables.audio, audio),
        cross_video=cut(tables.cross_video, video),
        cross_audio=cut(tables.cross_audio, audio),
    )


def masked_rotaries(case: Case, config: ModelConfig) -> Rotaries:
    """Read the tables of the masked cases: crossings recorded per video frame, audio without sinks."""
    audio_name = "rope.audio_self" if "rope.audio_self.cos" in case else "rope.audio_self_without_sinks"
    audio = recorded_rotary(case, audio_name, config)
    per_frame = recorded_rotary(case, "rope.video_cross_per_frame", config)
    return Rotaries(
        video=recorded_rotary(case, "rope.video_self", config),
        audio=audio,
        cross_video=repeat(per_frame, case.config["tokens_per_frame"]),
        cross_audio=recorded_rotary(case, "rope.audio_cross", config) if "rope.audio_cross.cos" in case else audio,
    )


def level_per_token(view: View) -> View:
    """Repeat noise levels for every token, so that scenes with fewer levels are the same compiled program."""
    tokens_v, tokens_a = (site.rotary_q.cos.shape[1] for site in (view.sites.video_self, view.sites.audio_self))

    def spread(times: Times, tokens: int) -> Times:
        return jax.tree.map(lambda x: jnp.repeat(x, tokens // x.shape[1], axis=1), times)

    return view.replace(times=Streams(spread(view.times.video, tokens_v), spread(view.times.audio, tokens_a)))


def as_recorded(rotary: Rotary) -> tuple[np.ndarray, np.ndarray]:
    """Write our table in the reference's form: split with heads first, interleaved with every angle twice."""
    if rotary.kind is RotaryKind.SPLIT:
        return np.swapaxes(rotary.cos, 1, 2), np.swapaxes(rotary.sin, 1, 2)
    flat = [np.reshape(x, (*x.shape[:2], -1)) for x in (rotary.cos, rotary.sin)]
    return np.repeat(flat[0], 2, axis=-1), np.repeat(flat[1], 2, axis=-1)


def compare_rotary(case: Case, name: str, rotary: Rotary) -> None:
    """Compare a table of ours with a recorded one."""
    cos, sin = as_recorded(rotary)
    case.compare(f"{name}.cos", cos.reshape(case[f"{name}.cos"].shape), own_tables=True)
    case.compare(f"{name}.sin", sin.reshape(case[f"{name}.sin"].shape), own_tables=True)


def as_tokens(video: np.ndarray) -> np.ndarray:
    """Flatten recorded video latents [B, F, C, H, W] into tokens [B, F H W, C]."""
    last = np.moveaxis(video, -3, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def as_latents(tokens, like: np.ndarray) -> np.ndarray:
    """Fold tokens [B, T, C] back into [B, F, C, H, W]."""
    batch, frames, channels, rows, columns = like.shape
    return np.moveaxis(np.asarray(tokens).reshape(batch, frames, rows, columns, channels), -1, -3)
