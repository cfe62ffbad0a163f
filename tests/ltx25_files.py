"""A tiny LTX-2.5 as it is published, in one file per part: bfloat16 beside float32 tables, configs in the headers.

The parts' keys, prefixes and header sections are those of the published files; the connectors are left out.
"""

import dataclasses
import json

import ml_dtypes
import numpy as np
from published import CODECS, NEWER, calm, draw_network
from safetensors.numpy import save_file

from converters.component import LTX2
from converters.registry import COMPONENTS, PREFIXES
from omniforcing_jax.codecs.conv import SpatialPadding
from omniforcing_jax.codecs.video_config import ALL, SPACE, TIME, compress, expand, res
from omniforcing_jax.codecs.vocoder import LTX23_VOCODER

NETWORK = dataclasses.replace(
    NEWER,
    video=dataclasses.replace(NEWER.video, mlp_bias=False),
    audio=dataclasses.replace(NEWER.audio, latent_channels=16),
    keyframe_embedding=True,
    float32_tables=True,
)
ONE = res(1)
SNAKES = {"resblock_kernels": (3,), "resblock_dilations": ((1, 3),)}
EXTENSION = LTX23_VOCODER.extension
PARTS = {
    "transformer": NETWORK,
    "video_vae": dataclasses.replace(
        CODECS["video_vae"],
        encoder_blocks=(ONE, compress(SPACE), ONE, compress(TIME), ONE, compress(ALL), ONE, compress(ALL, 1), ONE),
        decoder_blocks=(ONE, expand(SPACE), ONE, expand(TIME), ONE, expand(ALL, 1), ONE, expand(ALL), ONE),
        decoder_padding=SpatialPadding.ZEROS,
    ),
    "audio_vae": dataclasses.replace(CODECS["audio_vae"], mel_bins=64, z_channels=1, base_channels=16),
    "vocoder": dataclasses.replace(
        LTX23_VOCODER,
        channels=(64, 32, 16, 8, 4, 2, 1),
        **SNAKES,
        extension=dataclasses.replace(
            EXTENSION,
            generator=dataclasses.replace(EXTENSION.generator, channels=(32, 16, 8, 4, 2, 1), **SNAKES),
        ),
    ),
}
FILES = {"transformer": ["transformer"], "vae": ["video_vae"], "audio": ["audio_vae", "vocoder"]}
VERSION = {"model_version": "2.5.0", "license": "own"}
GEMMA_NAMES = (  # of ltx-core 1.2's packer
    ("model.language_model.", "model."),
    ("model.vision_embedder.", "vision_model."),
    ("model.embed_vision.", "multi_modal_projector."),
    ("model.embed_audio.", "audio_projector."),
)


def flatten_gemma(key):
    """Spell a key of transformers' Gemma 4 as ltx-core 1.2's packer does."""
    for old, new in GEMMA_NAMES:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def draw_part(name):
    """Draw a component under its keys in full."""
    tensors = calm(draw_network(PARTS[name], component=COMPONENTS[name], dtype=ml_dtypes.bfloat16))
    wide = {key: value.astype(np.float32) for key, value in tensors.items() if "scale_shift_table" in key}
    return tensors | wide


def save_split(folder):
    """Write the files; returns their paths by name. The video VAE's keys have no prefix."""
    folder.mkdir()
    paths = {name: folder / f"{name}.safetensors" for name in FILES}
    for name, parts in FILES.items():
        tensors, header = {}, {}
        for part in parts:
            prefix = PREFIXES[part][0] if part == "video_vae" else ""
            tensors |= {key.removeprefix(prefix): value for key, value in draw_part(part).items()}
            header |= COMPONENTS[part].namings[LTX2].table.write(PARTS[part])
        save_file(tensors, paths[name], {"config": json.dumps(header), **VERSION})
    return paths
