"""Complete pipeline configs by name: the presets of `--preset`, the tiny ones of the tests, and those of chime."""

import dataclasses
from typing import NamedTuple

from omniforcing_jax.codecs.audio_vae import CHIME_AUDIO_VAE, LTX2_AUDIO_VAE, AudioVAEConfig
from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import (
    ALL,
    CHIME_VIDEO_VAE,
    LTX2_VIDEO_VAE,
    LTX23_VIDEO_VAE,
    VideoVAEConfig,
    compress,
    res,
)
from omniforcing_jax.codecs.vocoder import CHIME_VOCODER, LTX2_VOCODER, LTX23_VOCODER, VocoderConfig
from omniforcing_jax.config import CameraConfig, CrossTimestep, ModelConfig, SamplerConfig, StreamConfig
from omniforcing_jax.layout import FUSED, PREFIX, PREFIX2
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.schedule import ltx2_schedule, sigma_lookup, snap
from omniforcing_jax.text.words import WordsConfig

LTX2_19B = ModelConfig(
    layers=48,
    video=StreamConfig(latent_channels=128, heads=32, head_size=128),
    audio=StreamConfig(latent_channels=128, heads=32, head_size=64),
    caption_channels=3840,
)

LTX2_22B = dataclasses.replace(  # LTX-2.3
    LTX2_19B, caption_channels=None, gated_attention=True, text_adaln=True, cross_timestep=CrossTimestep.CROSS
)

LTX25_22B = dataclasses.replace(
    LTX2_22B,
    video=dataclasses.replace(LTX2_22B.video, mlp_bias=False),
    keyframe_embedding=True,
    float32_tables=True,
)

ECHOWM = dataclasses.replace(LTX2_22B, camera=CameraConfig(heads=8, head_size=128))

CHIME = ModelConfig(
    layers=6,
    video=StreamConfig(latent_channels=32, heads=5, head_size=32),
    audio=StreamConfig(latent_channels=64, heads=5, head_size=16),
    caption_channels=64,
    sinks=4,
    spatial_compression=16,
)

CHIME_TEACHER = dataclasses.replace(CHIME, sinks=0)

TINY = ModelConfig(
    layers=2,
    video=StreamConfig(latent_channels=8, heads=4, head_size=16),
    audio=StreamConfig(latent_channels=8, heads=4, head_size=8),
    caption_channels=24,
)

RELEASED_TIMESTEPS = (1000, 909, 725, 421, 0)
RELEASED_SIGMAS = snap(RELEASED_TIMESTEPS, ltx2_schedule(40))[1]


class Student(NamedTuple):
    """What makes published weights a student, which no file of them says: its sampler and resolution."""

    sampler: SamplerConfig
    resolution: tuple[int, int]


ECHOWM_TIMESTEPS = (1000, 750, 500, 250)  # of a schedule of 1000 steps, looked up and not snapped
STUDENTS = {
    "echowm-flash": Student(
        sampler=SamplerConfig(
            layout=PREFIX2,
            sigmas=(*(float(sigma_lookup()[t]) for t in ECHOWM_TIMESTEPS), 0.0),
            horizon_seconds=6,
            pinned=3,
            scalar_sigma=1.0,
            needs_picture=True,
        ),
        resolution=(704, 1280),
    )
}

_ADJECTIVES = ("red", "yellow", "green", "cyan", "blue", "purple", "one", "two", "three")
_OTHER_WORDS = ("a", "and", "ball", "balls", "bounce", "bounces", "bouncing", "in", "box")
CHIME_WORDS = _ADJECTIVES + _OTHER_WORDS

LTX2_19B_STREAM = PipelineConfig(
    name="ltx2-19b",
    model=LTX2_19B,
    sampler=SamplerConfig(layout=FUSED, sigmas=RELEASED_SIGMAS, horizon_seconds=5),
    resolution=(512, 768),
    # The released decoder looks ahead; a stream runs the same weights with its causal flag on (docs/stream.md).
    video_vae=dataclasses.replace(LTX2_VIDEO_VAE, causal_decoder=True),
    audio_vae=LTX2_AUDIO_VAE,
    vocoder=LTX2_VOCODER,
    words=None,
)

LTX2_22B_STREAM = dataclasses.replace(
    LTX2_19B_STREAM,
    name="ltx2-22b",
    model=LTX2_22B,
    sampler=SamplerConfig(layout=FUSED, sigmas=RELEASED_SIGMAS, horizon_seconds=5, scalar_sigma=1.0),
    video_vae=dataclasses.replace(LTX23_VIDEO_VAE, causal_decoder=True),
    vocoder=LTX23_VOCODER,
)

LTX25_22B_STREAM = dataclasses.replace(LTX2_22B_STREAM, name="ltx2.5-22b", model=LTX25_22B)  # codecs are LTX-2.3's

ECHOWM_STREAM = dataclasses.replace(
    LTX2_22B_STREAM,
    name="ltx2-22b-echowm",
    model=ECHOWM,
    sampler=STUDENTS["echowm-flash"].sampler,
    resolution=STUDENTS["echowm-flash"].resolution,
)

CHIME_STREAM = PipelineConfig(
    name="chime",
    model=CHIME,
    sampler=SamplerConfig(layout=PREFIX, sigmas=RELEASED_SIGMAS, horizon_seconds=5),
    resolution=(64, 64),
    video_vae=CHIME_VIDEO_VAE,
    audio_vae=CHIME_AUDIO_VAE,
    vocoder=CHIME_VOCODER,
    words=WordsConfig(vocabulary=CHIME_WORDS),
)
CHIME_CLIP = dataclasses.replace(CHIME_STREAM, name="chime-teacher", model=CHIME_TEACHER, sampler=None)

TINY_STREAM = PipelineConfig(
    name="tiny",
    model=dataclasses.replace(TINY, sinks=2),
    sampler=SamplerConfig(layout=PREFIX, sigmas=(1.0, 0.7, 0.0), horizon_seconds=3, context_noise=0.1),
    resolution=(64, 96),
    video_vae=VideoVAEConfig(
        latent_channels=8,
        patch_size=4,
        encoder_base_channels=4,
        decoder_base_channels=8,
        encoder_blocks=(res(1), compress(ALL), compress(ALL), compress(ALL)),
        decoder_blocks=(res(1), compress(ALL), compress(ALL), compress(ALL)),
        causal_decoder=True,
        decoder_padding=SpatialPadding.ZEROS,
    ),
    audio_vae=AudioVAEConfig(mel_bins=16, z_channels=2, base_channels=4, res_blocks=1),
    vocoder=VocoderConfig(
        mel_bins=16, channels=(16, 8, 8, 4, 4, 4), resblock_kernels=(3,), resblock_dilations=((1, 3),)
    ),
    words=WordsConfig(vocabulary=CHIME_WORDS, channels=24),
)
TINY_CLIP = dataclasses.replace(TINY_STREAM, name="tiny-teacher", model=TINY, sampler=None)

_PUBLISHED = (LTX2_19B_STREAM, LTX2_22B_STREAM, LTX25_22B_STREAM, ECHOWM_STREAM)
_ALL = (*_PUBLISHED, CHIME_STREAM, CHIME_CLIP, TINY_STREAM, TINY_CLIP)
PRESETS = {preset.name: preset for preset in _ALL}
