"""Tiny checkpoints as they are published: original keys, the header's config, other components beside the network."""

import dataclasses
import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from converters.component import DIFFUSERS, LTX2, UPSAMPLER
from converters.formats import connectors, upsampler
from converters.formats.transformer import COMPONENT
from converters.registry import COMPONENTS, PREFIXES
from experiments.dry_run.published import PARTS
from omniforcing_jax.codecs.upsampler_config import Resampling, UpsamplerConfig
from omniforcing_jax.config import CrossTimestep, GridPrecision, ModelConfig, RotaryConfig, RotaryKind, StreamConfig
from omniforcing_jax.pipeline.presets import TINY, TINY_STREAM
from omniforcing_jax.text.connector import ConnectorConfig, ConnectorsConfig
from omniforcing_jax.text.features import FeatureNorm

SMALL = dataclasses.replace(TINY, cross_timestep=CrossTimestep.CROSS)
NEWER = dataclasses.replace(SMALL, caption_channels=None, gated_attention=True, text_adaln=True)
STREAM = ConnectorConfig(layers=1, heads=2, head_size=6, registers=4)
CODECS = {
    "video_vae": PARTS["video_vae"],
    "audio_vae": dataclasses.replace(TINY_STREAM.audio_vae, base_channels=8),
    "vocoder": dataclasses.replace(TINY_STREAM.vocoder, channels=(32, 16, 8, 4, 2, 1), mel_bins=64),
}
SPATIAL = UpsamplerConfig(
    latent_channels=CODECS["video_vae"].latent_channels, width=32, layers=1, resampling=Resampling.SPACE
)
TEMPORAL = dataclasses.replace(SPATIAL, resampling=Resampling.TIME, scale=1.0)
FORCED = ModelConfig(
    layers=2,
    video=StreamConfig(latent_channels=3, heads=2, head_size=8),
    audio=StreamConfig(latent_channels=2, heads=2, head_size=4),
    caption_channels=5,
    rotary=RotaryConfig(kind=RotaryKind.INTERLEAVED, grid=GridPrecision.FLOAT32),
    gate_multiplier=1.0,
    sinks=2,
)


def draw(shapes, seed=0, dtype=ml_dtypes.bfloat16):
    """Draw tensors by key."""
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=shape).astype(dtype) for key, shape in shapes.items()}


def draw_network(config, naming=LTX2, seed=0, dtype=ml_dtypes.bfloat16, component=COMPONENT):
    """Draw a component, by default the transformer, under a format's keys."""
    return draw({p.source: p.source_shape for p in component.expand(config, naming)}, seed, dtype)


def others(seed=1):
    """Draw tensors of a component without a table (see `without_tables`), and one among them that is no weight."""
    shapes = {"audio_vae.encoder.conv_in.conv.weight": (4, 2, 3, 3), "audio_vae.encoder.conv_in.conv.bias": (4,)}
    return draw(shapes, seed) | {"audio_vae.steps": np.array([3], np.int64)}


def without_tables(monkeypatch):
    """Take tables away, so that there are components that go through untouched."""
    for name in ("audio_vae", "vocoder"):
        monkeypatch.delitem(COMPONENTS, name, raising=False)


def save_ltx2(path, config=SMALL, extra=None, tensors=None, **metadata):
    """Write a file as LTX-2 is published; `extra` changes the header's transformer. Returns its tensors."""
    if tensors is None:
        tensors = draw_network(config) | draw_network(text_path(config), component=connectors.COMPONENT) | others()
    sections = [
        COMPONENT.namings[LTX2].table.write(config),
        connectors.COMPONENT.namings[LTX2].table.write(text_path(config)),
    ]
    header = {"transformer": {**sections[0]["transformer"], **sections[1]["transformer"], **(extra or {})}}
    header["audio_vae"] = {"preprocessing": {"audio": {"sampling_rate": 16000}}}
    save_file(tensors, path, {"config": json.dumps(header)} | metadata)
    return tensors


def calm(tensors):
    """Make random weights small, so that nothing overflows on the way through untrained layers."""
    return {key: (value.astype(np.float32) * 0.1).astype(value.dtype) for key, value in tensors.items()}


def save_merged(path, parts):
    """Write a file with every component of a prefix, from configs by name."""
    tensors, header = {}, {}
    for name in PREFIXES:
        tensors |= calm(draw_network(parts[name], component=COMPONENTS[name]))
        for section, values in COMPONENTS[name].namings[LTX2].table.write(parts[name]).items():
            header[section] = {**header.get(section, {}), **values}
    save_file(tensors, path, {"config": json.dumps(header)})


def save_upsampler(path, config=SPATIAL, dtype=ml_dtypes.bfloat16):
    """Write a file of one latent upsampler, as Lightricks publishes them."""
    component = COMPONENTS[upsampler.name_of(config)]
    header = {"_class_name": "LatentUpsampler", **component.namings[UPSAMPLER].table.write(config)}
    save_file(draw_network(config, UPSAMPLER, 5, dtype, component), path, {"config": json.dumps(header)})
    return path


def text_path(config):
    """Return connectors for a network."""
    newer = config.caption_channels is None
    video, audio = (dataclasses.replace(STREAM, heads=2, head_size=size) for size in ((8, 4) if newer else (12, 12)))
    norm = FeatureNorm.PER_TOKEN if newer else FeatureNorm.PER_PROMPT
    width = config.caption_channels or 24
    return ConnectorsConfig(
        text_width=width, text_states=49, norm=norm, video=video, audio=audio, gated_attention=newer
    )


def save_diffusers(folder, config=SMALL, dtype=np.float32):
    """Write a pipeline folder with its transformer only; returns its tensors."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "LTX2Pipeline"}')
    values = COMPONENT.namings[DIFFUSERS].table.write(config) | {"_diffusers_version": "0.42.1"}
    (folder / "transformer" / "config.json").write_text(json.dumps(values))
    tensors = draw_network(config, DIFFUSERS, dtype=dtype)
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return tensors
