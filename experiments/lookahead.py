"""What a look-ahead is worth: error of streamed decoding against whole-clip decoding, by look-ahead.

Decoders and vocoders of LTX-2 2.0 and 2.3 with all their layers, at small widths with random weights of unit gain (the
released ones are not here; trained ones forget faster), and chime's trained codecs, whose decoder is causal: once as it
is, and once as if it saw both sides.

Source: specs/ltx2.md 6.4.
Hardware: two CPU cores, some minutes.
Command: python -m experiments.lookahead --case 2.0 --json out/lookahead.json
Expect: with random weights the picture's error falls by an order of magnitude every few latents.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from omniforcing_jax.cli import bench_decode
from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.bandwidth import fourier_basis
from omniforcing_jax.codecs.mel import MelConfig, filterbank
from omniforcing_jax.codecs.snake import low_pass
from omniforcing_jax.codecs.video_vae import LTX2_VIDEO_VAE, LTX23_VIDEO_VAE, VideoVAE, VideoVAEConfig
from omniforcing_jax.codecs.vocoder import LTX2_VOCODER, LTX23_VOCODER, Vocoder, VocoderConfig
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.io.weights import fill_tree, name_leaves
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.pipeline.weights_folder import load_pipeline, read_pipeline_config

AUDIO = AudioVAEConfig(base_channels=16, z_channels=2, res_blocks=1)
WIDTHS = {"latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        case: Whose decoders.
        json: File for the figures.
        blocks: Length of the clip, in seconds.
        grid: Latent rows and columns of random weights' pictures.
        seed: Of weights and latents.
        lookaheads: Latent frames that the picture is held back.
    """

    case: Literal["2.0", "2.3", "chime", "chime both ways"]
    json: Path
    blocks: int = 9
    grid: tuple[int, int] = (2, 2)
    seed: int = 0
    lookaheads: tuple[int, ...] = bench_decode.LOOKAHEADS


def narrow(config: VocoderConfig) -> VocoderConfig:
    """Divide all widths of a published vocoder by 16, or as far as they go."""
    channels = tuple(max(2, width // 16) for width in config.channels)
    extension = config.extension
    if extension is not None:
        inner = tuple(max(2, width // 16) for width in extension.generator.channels)
        generator = dataclasses.replace(extension.generator, channels=inner)
        extension = dataclasses.replace(extension, generator=generator)
    return dataclasses.replace(config, channels=channels, extension=extension)


def draw(shapes: dict, seed: int) -> dict:
    """Draw kernels of unit gain and small biases; filters and bases are what they are."""
    rng = np.random.default_rng(seed)
    known = {"upsample": low_pass(), "downsample": low_pass(), "forward_basis": fourier_basis(512)}
    leaves = {}
    for name, leaf in name_leaves(shapes).items():
        last = name.rpartition("/")[2]
        if last in known:
            value = known[last]
        elif last == "mel_basis":
            value = filterbank(MelConfig(n_fft=512, hop=80))
        elif last.endswith("std"):
            value = np.ones(leaf.shape)
        else:
            scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
            value = rng.normal(size=leaf.shape) * scale
        leaves[name] = jnp.asarray(value, jnp.float32)
    return fill_tree(shapes, leaves)


def random_codecs(video: VideoVAEConfig, vocoder: VocoderConfig, seed: int) -> Codecs:
    """Make the codecs of a generation at small widths."""
    side, key = 2 * video.spatial_compression, jax.random.key(0)
    pixels, mel = jnp.zeros((1, 9, side, side, 3)), jnp.zeros((1, 5, AUDIO.mel_bins, AUDIO.audio_channels))
    return Codecs(
        video=draw(jax.eval_shape(VideoVAE(video).init, key, pixels), seed),
        audio=draw(jax.eval_shape(AudioVAE(AUDIO).init, key, mel), seed),
        vocoder=draw(jax.eval_shape(Vocoder(vocoder).init, key, mel), seed),
        video_config=video,
        audio_config=AUDIO,
        vocoder_config=vocoder,
    )


def make_codecs(config: Config) -> tuple[Codecs, tuple[int, int]]:
    """Make or load a case's codecs, and say how large its pictures are, in latents."""
    if config.case in ("2.0", "2.3"):
        published = {"2.0": (LTX2_VIDEO_VAE, LTX2_VOCODER), "2.3": (LTX23_VIDEO_VAE, LTX23_VOCODER)}[config.case]
        video = dataclasses.replace(published[0], **WIDTHS)
        return random_codecs(video, narrow(published[1]), config.seed), config.grid
    folder = CHIME_WEIGHTS / "student"
    pipeline = load_pipeline(folder, chime := read_pipeline_config(folder))
    codecs = pipeline.codecs
    if config.case == "chime both ways":
        codecs = dataclasses.replace(
            codecs, video_config=dataclasses.replace(codecs.video_config, causal_decoder=False)
        )
    return codecs, chime.grid(*chime.resolution)


def main(config: Config) -> None:
    """Measure a case, print the tables and write the figures."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    codecs, grid = make_codecs(config)
    figures = {
        "device": jax.devices()[0].device_kind,
        "weights": config.case,
        "picture": bench_decode.measure_picture(
            codecs, grid, PREFIX, config.blocks, config.seed, jnp.float32, config.lookaheads
        ),
        "sound": bench_decode.measure_sound(codecs, PREFIX, config.blocks, config.seed),
    }
    write_json(config.json, figures)
    print(bench_decode.tabulate(figures))


if __name__ == "__main__":
    main(tyro.cli(Config))
