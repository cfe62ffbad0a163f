"""A tiny network with random, non-trivial weights, and random inputs for it: what most tests run on."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.version import __version_info__ as jaxlib_version

from omniforcing_jax.config import ModelConfig, RotaryConfig, RotaryKind
from omniforcing_jax.model.transformer import Transformer, text_kv, transformer_spec
from omniforcing_jax.parallel.spec import Spec, path_name
from omniforcing_jax.pipeline.presets import TINY
from omniforcing_jax.streams import Streams

GRID = (2, 3)  # latent rows and columns
TOKENS = GRID[0] * GRID[1]
CAPTION_TOKENS = 5
BATCH = 2

# All of conftest's hurry that can change a program's buffers; later versions do not know the flag.
AS_USERS_DO = {"xla_cpu_use_fusion_emitters": True} if jaxlib_version < (0, 11, 1) else {}

SINKS = dataclasses.replace(TINY, sinks=3)
INTERLEAVED = dataclasses.replace(TINY, rotary=RotaryConfig(kind=RotaryKind.INTERLEAVED))
MODERN = dataclasses.replace(TINY, caption_channels=None, gated_attention=True, text_adaln=True)  # as LTX-2.3
NEWEST = dataclasses.replace(  # as LTX-2.5, with text keys that depend on no noise level
    MODERN, video=dataclasses.replace(TINY.video, mlp_bias=False), prompt_time=False, keyframe_embedding=True
)


def random_params(config: ModelConfig, seed: int = 0, dtype=jnp.float32) -> Transformer:
    """Draw every weight, also biases, norms and tables, so that nothing in the network is neutral."""

    def draw(path, spec: Spec):
        name = path_name(path)
        noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=spec.shape)
        if name.endswith("norm"):
            value = 1 + 0.25 * noise
        elif name.endswith("/w"):
            value = noise / math.sqrt(spec.shape[-1])
        else:
            value = (0.15 if name.endswith("/b") else 0.35) * noise
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(draw, transformer_spec(config))


def random_latents(config: ModelConfig, frames: int, audio_frames: int, seed: int = 1, batch: int = BATCH):
    """Draw video tokens [B, T, C] and audio tokens [B, A, C]."""
    rng = np.random.default_rng(seed)
    video = rng.normal(size=(batch, frames * TOKENS, config.video.latent_channels))
    audio = rng.normal(size=(batch, audio_frames, config.audio.latent_channels))
    return Streams(jnp.asarray(video, jnp.float32), jnp.asarray(audio, jnp.float32))


@jax.jit
def _text(params, video, audio, mask, sigma):
    return text_kv(params, video, audio, mask, sigma=sigma)


def random_text(config: ModelConfig, params: Transformer, seed: int = 2, batch: int = BATCH, sigma=None):
    """Draw contexts with a left-padded mask and make their keys and values."""
    rng = np.random.default_rng(seed)
    widths = [config.caption_channels or stream.width for stream in (config.video, config.audio)]
    video, audio = (jnp.asarray(rng.normal(size=(batch, CAPTION_TOKENS, w)), jnp.float32) for w in widths)
    mask = np.ones((batch, CAPTION_TOKENS), np.int32)
    mask[0, :2] = 0
    return _text(params, video, audio, jnp.asarray(mask), sigma)
