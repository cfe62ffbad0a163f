"""What a look-ahead is worth: error of streamed decoding against whole-clip decoding, by look-ahead.

Decoders and vocoders are those of LTX-2 2.0 and 2.3 with all their layers, at small widths, with random weights of
unit gain. The released weights are not here; trained ones forget faster. Chime's trained codecs are measured, too.
Their decoder is causal: once it runs as it is, and once as if it saw both sides.

Source: ltx-core's `video_vae`, whose released decoder sees both sides of a frame.
Hardware: two CPU cores, some minutes.
Expect: with random weights the picture's error falls by an order of magnitude every few latents.

    python -m experiments.lookahead --case 2.0 --json out/lookahead.json
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.judge.sources import load
from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags, start_logging
from omniforcing_jax.cli import bench_decode
from omniforcing_jax.codecs.audio_vae import AudioVAE, AudioVAEConfig
from omniforcing_jax.codecs.bandwidth import fourier_basis
from omniforcing_jax.codecs.mel import MelConfig, filterbank
from omniforcing_jax.codecs.snake import low_pass
from omniforcing_jax.codecs.video_vae import LTX2_VIDEO_VAE, LTX23_VIDEO_VAE, VideoVAE, VideoVAEConfig
from omniforcing_jax.codecs.vocoder import LTX2_VOCODER, LTX23_VOCODER, Vocoder, VocoderConfig
from omniforcing_jax.io.weights import fill_tree, name_leaves
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.pipeline.pipeline import Codecs
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS

AUDIO = AudioVAEConfig(base_channels=16, z_channels=2, res_blocks=1)
WIDTHS = {"latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure a decoder's error by its look-ahead."""

    case: Literal["2.0", "2.3", "chime", "chime both ways"]
    """Whose decoders."""
    json: Path
    """JSON file for the figures."""
    blocks: int = 9
    """Length of the clip, in seconds."""
    grid: tuple[int, int] = (2, 2)
    """Latent rows and columns of pictures with random weights."""
    seed: int = 0
    """Random seed of weights and latents."""
    lookaheads: tuple[int, ...] = bench_decode.LOOKAHEADS
    """Latent frames that the picture is held back."""


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


def make_codecs(arguments: Arguments) -> tuple[Codecs, tuple[int, int]]:
    """Make or load a case's codecs, and say how large its pictures are, in latents."""
    if arguments.case in ("2.0", "2.3"):
        published = {"2.0": (LTX2_VIDEO_VAE, LTX2_VOCODER), "2.3": (LTX23_VIDEO_VAE, LTX23_VOCODER)}[arguments.case]
        video = dataclasses.replace(published[0], **WIDTHS)
        return random_codecs(video, narrow(published[1]), arguments.seed), arguments.grid
    pipeline = load(CHIME_WEIGHTS / "student")
    codecs, chime = pipeline.codecs, pipeline.config
    if arguments.case == "chime both ways":
        codecs = dataclasses.replace(
            codecs, video_config=dataclasses.replace(codecs.video_config, causal_decoder=False)
        )
    return codecs, chime.grid(*chime.resolution)


def main(arguments: Arguments) -> None:
    """Measure a case, print the tables and write the figures; bad input is one line on stderr and exit code 2."""
    start_logging()
    with refusing(arguments.json):
        codecs, grid = make_codecs(arguments)
        figures = {
            "device": jax.devices()[0].device_kind,
            "weights": arguments.case,
            "picture": bench_decode.measure_picture(
                codecs, grid, PREFIX, arguments.blocks, arguments.seed, jnp.float32, arguments.lookaheads
            ),
            "sound": bench_decode.measure_sound(codecs, PREFIX, arguments.blocks, arguments.seed),
        }
        keep_figures(arguments.json, figures)
        print(bench_decode.tabulate(figures))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
