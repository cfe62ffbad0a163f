"""Train chime's vocoder: log-mel of one channel to 24 kHz sound; it ships twice, side by side, as a stereo vocoder.

Given its log-mel, a channel needs nothing of the other one. A network that is trained on both at once writes their mean
to both, because most of its loss is what they share.

Chime's tones are multiples of the 100 mel rows per second, locked to absolute time. Every row of a steady tone is the
same 10 ms of waveform, so the waveform itself can be compared, beside its spectra. The input is what the audio VAE
decodes from noisy latents, which is what the vocoder will hear from a generator. The audio VAE must be exported first.

Source: the architecture is LTX-2's vocoder (2.0, HiFi-GAN) with one stage and no adversaries; the recipe is our own.
Hardware: two CPU cores, about 7 minutes.
Expect: `snr`, in dB, rises above 13.

    python -m experiments.chime.train_vocoder
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.world import encoders, latents
from experiments.chime.world.clips import TRAIN_SEED
from experiments.chime.world.recipe import RUNS, RunArguments
from experiments.script import read_flags, start_logging
from omniforcing_jax.chime import physics, render
from omniforcing_jax.codecs.mel import stft_magnitude
from omniforcing_jax.codecs.vocoder import CHIME_VOCODER, Vocoder
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        clips: Training worlds whose sound is used.
        rows: Mel rows of a crop. Its ends count in the loss: they stand for the start and the end of a clip, where the
            network sees zeros, which as log-mel are loud.
        noise: Largest standard deviation of the noise on audio latents, whose scale is one.
        ffts: Window lengths of the spectral losses, in samples at 24 kHz; hops are a quarter.
    """

    clips: int = 200
    rows: int = 60
    batch: int = 8
    noise: float = 0.15
    ffts: tuple[int, ...] = (512, 2048)
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="adam", learning_rate=3e-3, steps=3500, warmup=50, decay_from=0.3, out_axis=-1
    )
    seed: int = 20


CONFIG = Config()
ONE_CHANNEL = dataclasses.replace(
    CHIME_VOCODER, audio_channels=1, channels=tuple(width // 2 for width in CHIME_VOCODER.channels)
)


def sound_loss(prediction: jax.Array, target: jax.Array, ffts: tuple[int, ...]) -> tuple[jax.Array, dict]:
    """Compare waveforms [B, samples, channels] as they are and by the magnitudes of their spectra."""
    wave = jnp.mean(jnp.abs(prediction - target))
    snr = 10 * jnp.log10(jnp.sum(target**2) / jnp.sum((prediction - target) ** 2))
    convergence, log_error = 0.0, 0.0
    for n_fft in ffts:
        ours, theirs = (stft_magnitude(w, n_fft=n_fft, hop=n_fft // 4) for w in (prediction, target))
        convergence += jnp.sqrt(jnp.sum((ours - theirs) ** 2) / (jnp.sum(theirs**2) + 1e-3)) / len(ffts)
        log_error += jnp.mean(jnp.abs(jnp.log(ours + 1e-2) - jnp.log(theirs + 1e-2))) / len(ffts)
    return convergence + 0.3 * log_error + 20 * wave, {"snr": snr, "convergence": convergence, "log_error": log_error}


@dataclasses.dataclass(frozen=True)
class HeardClips:
    """Crops of decoded log-mel beside the sound that it stands for.

    Example: `mel` float32 [rows, 64, 2], `audio` float32 [rows * 240, 2].
    """

    mels: np.ndarray
    rows: int
    count: int = 100_000

    def __len__(self) -> int:
        """Number of crops."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Cut crop `index` and render its sound."""
        rng = np.random.default_rng([index, 4])
        clip, row = int(rng.integers(len(self.mels))), int(rng.integers(self.mels.shape[1] - self.rows))
        scene = physics.sample_world(TRAIN_SEED + clip)
        return {
            "mel": self.mels[clip, row : row + self.rows].astype(np.float32),
            "audio": render.render_audio(scene, self.rows * 240, first_sample=row * 240),
        }


def decode_noisy(config: Config, file: Path, folder: Path) -> np.ndarray:
    """Decode latents of training worlds, each clip at a noise level of its own: log-mels [clips, rows, 64, 2]."""
    clips = latents.read(file)["audio"][: config.clips].astype(np.float32)
    rng = np.random.default_rng(config.seed)
    noisy = clips + config.noise * rng.uniform(size=(len(clips), 1, 1)) * rng.normal(size=clips.shape)
    decode = encoders.load_encoders(folder).decode_sound
    parts = [
        np.asarray(decode(jnp.asarray(part, jnp.float32)), np.float16) for part in np.split(noisy, len(noisy) // 10)
    ]
    return np.concatenate(parts)


def make_loss(config: Config, vocoder: Any):
    """Build the trainer's loss: sound from a crop of log-mel, compared with the real one."""

    def loss(params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        mel, audio = (jnp.concatenate(jnp.split(batch[name], 2, axis=-1)) for name in ("mel", "audio"))
        return sound_loss(vocoder.apply({"params": params}, mel), audio, config.ffts)

    return loss


def start(config: Config) -> tuple[Vocoder, state.TrainState, Any]:
    """Make the network, a fresh trainer and its optimiser; silence begins as silence, and the first layer small."""
    vocoder = Vocoder(ONE_CHANNEL)
    params: Any = vocoder.init(jax.random.key(config.seed), jnp.zeros((1, 9, 64, 1)))["params"]
    kernel = params["conv_in"]["conv"]["kernel"] / 4
    params["conv_in"]["conv"] = {"kernel": kernel, "bias": -encoders.SILENCE * kernel.sum((0, 1))}
    rule = optimiser.optimiser(config.optimiser)
    return vocoder, state.create(params, rule, config.seed), rule


def side_by_side(params: Any) -> Any:
    """Put two copies of a network of one channel into one of two: in every convolution, neither sees the other."""

    def twice(x: jax.Array) -> jax.Array:
        if x.ndim == 1:
            return jnp.tile(x, 2)
        nothing = jnp.zeros_like(x)
        return jnp.block([[x, nothing], [nothing, x]])

    return jax.tree.map(twice, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(RunArguments):
    """Train chime's vocoder on what its audio VAE decodes."""

    folder: Path = RUNS / "vocoder"
    data_file: Path = latents.FILE
    """Clips to train on, from encode_clips."""
    encoders: Path = encoders.FOLDER
    """Folder of the audio VAE."""


def main(arguments: Arguments) -> None:
    """Train or continue."""
    start_logging()
    config = CONFIG
    vocoder, trainer, rule = start(config)
    update = step.make_step(gradient.of_loss(make_loss(config, vocoder)), rule)
    mels = decode_noisy(config, arguments.data_file, arguments.encoders)
    batches = data.batches(HeardClips(mels, config.rows), config.batch, config.seed)
    run = arguments.loop(config.optimiser.steps, save_every=250)
    loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
