"""Train chime's vocoder: log-mel of two channels to 24 kHz stereo.

Chime's tones are multiples of the 100 mel rows per second, locked to absolute time, so every row of a steady tone
is the same 10 ms of waveform and the waveform itself can be compared, beside its spectra. The input is what the
audio VAE decodes from noisy latents, which is what the vocoder will hear from a generator.

Source: architecture of LTX-2's vocoder (2.0, HiFi-GAN) at small width, without its adversaries; the recipe is our own.
Hardware: two CPU cores, about 25 minutes.
Command: python -m experiments.chime.train_vocoder [--minutes M]   (after train_audio_vae)
Expect: spectral convergence below 0.1 on training clips.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.chime import train_audio_vae
from experiments.chime.clips import SoundClips
from omniforcing_jax.codecs.mel import log_mel, stft_magnitude
from omniforcing_jax.codecs.vocoder import CHIME_VOCODER, Vocoder
from omniforcing_jax.train import checkpoint, data, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
      seconds: length of a clip, whole latents; `edge` rows at each side carry no loss (the net looks 6 rows each way).
      ffts: window lengths of the spectral losses, in samples at 24 kHz; hops are a quarter.
      noise: on the audio latents, relative to their spread.
    """

    seconds: float = 0.88
    batch: int = 8
    edge: int = 8
    ffts: tuple[int, ...] = (256, 512, 1024, 2048)
    noise: float = 0.1
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=2e-3, steps=1500, warmup=50, decay_from=0.3, out_axis=-1
    )
    seed: int = 20


CONFIG = Config()


def sound_loss(prediction: jax.Array, target: jax.Array, ffts: tuple[int, ...]) -> tuple[jax.Array, dict]:
    """Compare waveforms [B, samples, 2] as they are and by the magnitudes of their spectra."""
    wave = jnp.mean(jnp.abs(prediction - target))
    convergence, log_error = 0.0, 0.0
    for n_fft in ffts:
        ours, theirs = (stft_magnitude(w, n_fft=n_fft, hop=n_fft // 4) for w in (prediction, target))
        convergence += jnp.sqrt(jnp.sum((ours - theirs) ** 2) / (jnp.sum(theirs**2) + 1e-3)) / len(ffts)
        log_error += jnp.mean(jnp.abs(jnp.log(ours + 1e-2) - jnp.log(theirs + 1e-2))) / len(ffts)
    return convergence + log_error + 10 * wave, {"wave": wave, "convergence": convergence, "log_error": log_error}


def make_loss(config: Config, vocoder: Vocoder, audio_vae: Any, audio_variables: dict):
    """Build the trainer's loss: real sound -> mel -> noisy latents -> mel -> sound, compared with the real one."""
    margin = config.edge * 240

    def loss(params: Any, batch: dict, key: jax.Array, extra: None):
        mel = log_mel(batch["audio_16000"])
        raw = audio_vae.apply(audio_variables, mel, method="moments").mean
        spread = jnp.sqrt(jnp.mean((raw - raw.mean((0, 1))) ** 2) + 1e-8)
        level = config.noise * spread * jax.random.uniform(jax.random.fold_in(key, 1), (raw.shape[0], 1, 1))
        noisy = raw + level * jax.random.normal(key, raw.shape, raw.dtype)
        heard = jax.lax.stop_gradient(audio_vae.apply(audio_variables, noisy, method="decode_raw"))
        sound = vocoder.apply({"params": params}, heard)
        target = batch["audio_24000"]
        sound = sound[:, margin : target.shape[1] - margin]
        value, metrics = sound_loss(sound, target[:, margin:-margin], config.ffts)
        return value, (metrics, extra)

    return loss


def trained_audio_vae(folder: Path) -> tuple[Any, dict]:
    """Read the averaged weights of a run of train_audio_vae."""
    vae, stats, trainer, _ = train_audio_vae.start(train_audio_vae.CONFIG)
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), trainer)
    if found is None:
        raise ValueError(f"{folder}: no checkpoint of train_audio_vae")
    return vae, {"params": found[0].ema, "stats": stats}


def start(config: Config) -> tuple[Vocoder, state.TrainState, Any]:
    """Make the network, a fresh trainer and its optimiser."""
    vocoder = Vocoder(CHIME_VOCODER)
    variables = vocoder.init(jax.random.key(config.seed), jnp.zeros((1, 9, 64, 2)))
    rule = optimiser.optimiser(config.optimiser)
    return vocoder, state.create(variables["params"], rule, config.seed), rule


def main(
    folder: Path = Path("runs/chime/vocoder"),
    audio_vae: Path = Path("runs/chime/audio_vae"),
    minutes: float | None = None,
) -> None:
    """Train or continue in `folder`, on what the audio VAE in `audio_vae` decodes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    config = CONFIG
    vocoder, trainer, rule = start(config)
    update = step.make_step(make_loss(config, vocoder, *trained_audio_vae(audio_vae)), rule)
    batches = data.batches(SoundClips(config.seconds, (16_000, 24_000)), config.batch, config.seed)
    run = loop.LoopConfig(folder=folder, steps=config.optimiser.steps, save_every=200, minutes=minutes)
    loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    tyro.cli(main)
