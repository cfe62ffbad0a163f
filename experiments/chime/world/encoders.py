"""The shipped encoders as functions, and worlds rendered as they take them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.world.clips import to_float
from omniforcing_jax import layout
from omniforcing_jax.chime import physics, render
from omniforcing_jax.codecs.audio_vae import CHIME_AUDIO_VAE, AudioVAE
from omniforcing_jax.codecs.mel import LTX2_MEL, fit_rows, log_mel
from omniforcing_jax.codecs.video_config import CHIME_VIDEO_VAE
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.io import weights
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS

FOLDER = CHIME_WEIGHTS / "codecs"
SILENCE = -11.5  # log of the mel's floor, 1e-5
VIDEO: Any = VideoVAE(CHIME_VIDEO_VAE)
AUDIO: Any = AudioVAE(CHIME_AUDIO_VAE)


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The encoders of both streams and the decoder to log-mel, ready to use."""

    video_variables: dict
    audio_variables: dict

    def encode_video(self, pixels: jax.Array) -> jax.Array:
        """Encode pixels [B, T, H, W, 3] in [-1, 1] to normalised latents [B, F, h, w, C]."""
        return _encode_video(self.video_variables, pixels)

    def encode_sound(self, waveform: jax.Array) -> jax.Array:
        """Encode 16 kHz stereo [B, samples, 2], whole seconds, to normalised latents [B, A, C]."""
        return encode_sound(self.audio_variables, waveform)

    def decode_sound(self, normalised: jax.Array) -> jax.Array:
        """Decode audio latents [B, A, C] to log-mel [B, rows, 64, 2]."""
        return _decode_sound(self.audio_variables, normalised)


@jax.jit
def _encode_video(variables: dict, pixels: jax.Array) -> jax.Array:
    return VIDEO.apply(variables, pixels, method="encode")


@jax.jit
def encode_sound(variables: dict, waveform: jax.Array) -> jax.Array:
    """Encode 16 kHz stereo [B, samples, 2], whole seconds, by an audio VAE's variables, to latents [B, A, C]."""
    seconds = waveform.shape[1] // LTX2_MEL.sample_rate
    latents = layout.audio_latents(layout.latent_frames(layout.PREFIX.frames_for(seconds)))
    return AUDIO.apply(variables, fit_rows(log_mel(waveform), CHIME_AUDIO_VAE.mel_rows(latents)), method="encode")


@jax.jit
def _decode_sound(variables: dict, normalised: jax.Array) -> jax.Array:
    return AUDIO.apply(variables, normalised, method="decode")


def render_clips(seeds: range, seconds: int) -> tuple[jax.Array, jax.Array]:
    """Render worlds from their beginning: pixels [B, T, H, W, 3] in [-1, 1] and 16 kHz sound [B, samples, 2]."""
    return to_device(*render_worlds(seeds, seconds))


def render_worlds(seeds: range, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """Render worlds without a device: pixels uint8 [B, T, H, W, 3] and 16 kHz sound [B, samples, 2]."""
    frames, rate = layout.PREFIX.frames_for(seconds), LTX2_MEL.sample_rate
    worlds = [physics.sample_world(seed) for seed in seeds]
    pixels = np.stack([render.render_video(w, frames) for w in worlds])
    return pixels, np.stack([render.render_audio(w, seconds * rate, rate) for w in worlds])


def to_device(pixels: np.ndarray, sound: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Turn rendered worlds into what the encoders take."""
    return jnp.asarray(to_float(pixels)), jnp.asarray(sound)


def load_encoders(folder: Path = FOLDER) -> Encoders:
    """Read the shipped encoders."""
    video = jax.eval_shape(VideoVAE(CHIME_VIDEO_VAE).init, jax.random.key(0), jnp.zeros((1, 9, 64, 64, 3)))
    audio = jax.eval_shape(AudioVAE(CHIME_AUDIO_VAE).init, jax.random.key(0), jnp.zeros((1, 5, 64, 2)))
    return Encoders(
        weights.load_component(folder, "video_vae", video), weights.load_component(folder, "audio_vae", audio)
    )
