"""Train chime's audio VAE: log-mel of two channels to 64 numbers at 25 Hz and back.

Source: the architecture is LTX-2's audio VAE (2.0) at small width; the recipe is our own.
Hardware: two CPU cores, about 8 minutes.
Expect: a mean absolute error of the log-mel below 0.1, and below 0.2 where it is loud.

    python -m experiments.chime.train_audio_vae
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.chime.world.clips import SoundClips
from experiments.chime.world.encoders import SILENCE
from experiments.chime.world.recipe import RUNS, RunArguments
from experiments.script import read_flags, start_logging
from omniforcing_jax.codecs.audio_vae import CHIME_AUDIO_VAE, AudioVAE
from omniforcing_jax.codecs.mel import LTX2_MEL, log_mel
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig

RATE = LTX2_MEL.sample_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        seconds: Length of a clip; the decoder looks back 1.3 s.
        noise: Standard deviation of the noise on latents, relative to their spread.
        loud_weight: Weight of a mel cell 8 nats above silence, beside 1 for silence.
    """

    seconds: float = 2.0
    batch: int = 4
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=2e-3, steps=1000, warmup=30, decay_from=0.3, out_axis=-1
    )
    noise: float = 0.1
    noise_warmup: int = 300
    loud_weight: float = 2.0
    size_weight: float = 1e-5
    seed: int = 10


CONFIG = Config()


def mel_loss(prediction: jax.Array, target: jax.Array, loud_weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compare log-mels [B, rows, bins, 2]: values, and their change from row to row (onsets)."""
    loud = jnp.clip((target - SILENCE) / 8, 0, 1)
    weight = 1 + loud_weight * loud
    error = prediction - target
    change = jnp.abs(jnp.diff(prediction, axis=1) - jnp.diff(target, axis=1))
    value = jnp.mean(weight * (jnp.abs(error) + 0.3 * error**2)) + 0.5 * jnp.mean(weight[:, 1:] * change)
    return value, {"error": jnp.mean(jnp.abs(error)), "loud_error": jnp.sum(loud * jnp.abs(error)) / jnp.sum(loud)}


def make_loss(config: Config, vae: Any, stats: dict):
    """Build the trainer's loss: mel, encode, add noise, decode, compare."""

    def loss(params: Any, batch: dict, key: jax.Array, extra: jax.Array):
        variables = {"params": params, "stats": stats}
        target = log_mel(batch[f"audio_{RATE}"])
        raw = vae.apply(variables, target, method="moments").mean
        spread = jnp.sqrt(jnp.mean((raw - raw.mean((0, 1))) ** 2) + 1e-8)
        level = config.noise * jnp.minimum(extra / config.noise_warmup, 1.0) * spread
        noisy = raw + level * jax.random.normal(key, raw.shape, raw.dtype)
        value, metrics = mel_loss(vae.apply(variables, noisy, method="decode_raw"), target, config.loud_weight)
        return value + config.size_weight * jnp.mean(raw**2), ({**metrics, "spread": spread}, extra + 1)

    return loss


def start(config: Config) -> tuple[AudioVAE, dict, state.TrainState, Any]:
    """Make the network, its statistics, a fresh trainer and its optimiser; the decoder begins at silence."""
    vae = AudioVAE(CHIME_AUDIO_VAE)
    variables: Any = vae.init(jax.random.key(config.seed), jnp.zeros((1, 5, 64, 2)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf + SILENCE if "['decoder']['conv_out']" in jax.tree_util.keystr(path) and leaf.ndim == 1 else leaf
        ),
        variables["params"],
    )
    rule = optimiser.optimiser(config.optimiser)
    return vae, variables["stats"], state.create(params, rule, config.seed, extra=jnp.zeros(())), rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(RunArguments):
    """Train chime's audio VAE."""

    folder: Path = RUNS / "audio_vae"


def main(arguments: Arguments) -> None:
    """Train or continue."""
    start_logging()
    config = CONFIG
    vae, stats, trainer, rule = start(config)
    update = step.make_step(gradient.of_carrying_loss(make_loss(config, vae, stats)), rule)
    batches = data.batches(SoundClips(config.seconds, (RATE,)), config.batch, config.seed)
    loop.train(
        arguments.loop(config.optimiser.steps, save_every=200),
        trainer,
        update,
        batches,
        describe=dataclasses.asdict(config),
    )


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
