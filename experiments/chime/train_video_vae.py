"""Train chime's video VAE: 16x in space, 8x in time, on clips that grow as it learns.

Four things mattered (experiments/LOG.md): weight on the balls, latents at unit scale before noise is added, Muon, and
clips as long as the receptive field. Beyond the trained length a causal codec meets states that it never saw.

Source: the architecture is LTX-2's video VAE (2.0) at small width; the recipe is our own.
Hardware: two CPU cores, about 45 minutes.
Expect: `fg_psnr`, in dB over the pixels that balls cover, leaves 11 after some 300 steps.

    python -m experiments.chime.train_video_vae
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.chime.world.clips import VideoClips, to_float
from experiments.chime.world.recipe import RUNS, RunArguments
from experiments.script import read_flags, start_logging
from omniforcing_jax.codecs.video_config import CHIME_VIDEO_VAE
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """Clips of one length for so many steps."""

    frames: int
    batch: int
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        stages: Clip lengths in order; the receptive field of the decoder is about 80 frames.
        noise: Standard deviation of the noise on latents of unit scale, once warmed up.
        foreground_weight: Weight of a pixel that a ball covers, beside 1 for the background.
    """

    stages: tuple[Stage, ...] = (Stage(17, 5, 600), Stage(33, 3, 400), Stage(65, 2, 650))
    optimiser: OptimiserConfig = OptimiserConfig(
        kind="muon", learning_rate=2e-3, steps=1650, warmup=50, decay_from=0.6, out_axis=-1
    )
    noise: float = 0.1
    noise_warmup: int = 1000
    foreground_weight: float = 7.0
    size_weight: float = 1e-5
    seed: int = 0


CONFIG = Config()


def unit_scale(latents: jax.Array, running: dict) -> tuple[jax.Array, dict]:
    """Bring latents [B, F, h, w, C] to zero mean per channel and unit variance over all channels.

    One scale for all channels keeps unused channels small, so a generator need not model them.
    Returns the scaled latents and the updated running statistics (decay 0.99).
    """
    mean = latents.mean((0, 1, 2, 3))
    scale = jnp.sqrt(jnp.mean((latents - mean) ** 2) + 1e-8)
    fresh = {"mean": mean, "scale": scale}
    running = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * jax.lax.stop_gradient(new), running, fresh)
    return (latents - mean) / scale, running


def reconstruction_loss(prediction: jax.Array, target: jax.Array, foreground: jax.Array, weight: float) -> jax.Array:
    """Weigh squared and absolute error by where the balls are."""
    weights = (1 + weight * foreground)[..., None]
    error = prediction - target
    return jnp.mean(weights * (6 * error**2 + 0.3 * jnp.abs(error))) / jnp.mean(weights)


def make_loss(config: Config, vae: Any, stats: dict):
    """Build the trainer's loss: encode, scale, add noise, decode, compare."""

    def loss(params: Any, batch: dict, key: jax.Array, extra: dict):
        variables = {"params": params, "stats": stats}
        video, foreground = to_float(batch["video"]), batch["foreground"]
        raw, _ = vae.apply(variables, video, method="moments")
        latents, running = unit_scale(raw, extra["running"])
        level = config.noise * jnp.minimum(extra["count"] / config.noise_warmup, 1.0)
        noisy = latents + level * jax.random.normal(key, latents.shape, latents.dtype)
        decoded = vae.apply(variables, noisy, method="render")
        value = reconstruction_loss(decoded, video, foreground, config.foreground_weight)
        value += config.size_weight * jnp.mean(raw**2)
        metrics = {"fg_psnr": foreground_psnr(decoded, video, foreground), "scale": running["scale"]}
        return value, (metrics, {"running": running, "count": extra["count"] + 1})

    return loss


def foreground_psnr(prediction: jax.Array, target: jax.Array, foreground: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB over the pixels that balls cover; pictures in [-1, 1]."""
    error = jnp.mean((prediction - target) ** 2, axis=-1)
    return 10 * jnp.log10(4 * jnp.sum(foreground) / (jnp.sum(error * foreground) + 1e-9))


def fold_scale(params: dict, running: dict) -> dict:
    """Build the running scale into the encoder's last convolution, so that plain latents have unit scale."""
    last = params["encoder"]["conv_out"]
    scale = jnp.append(jnp.full_like(running["mean"], running["scale"]), 1.0)
    shift = jnp.append(running["mean"], 0.0)
    folded = {"kernel": last["kernel"] / scale[None, None, None, None], "bias": (last["bias"] - shift) / scale}
    return {**params, "encoder": {**params["encoder"], "conv_out": folded}}


def start(config: Config) -> tuple[VideoVAE, dict, state.TrainState, Any]:
    """Make the network, its statistics, a fresh trainer and its optimiser."""
    vae = VideoVAE(CHIME_VIDEO_VAE)
    variables: Any = vae.init(jax.random.key(config.seed), jnp.zeros((1, 9, 64, 64, 3)))
    rule = optimiser.optimiser(config.optimiser)
    running = {"mean": jnp.zeros(CHIME_VIDEO_VAE.latent_channels), "scale": jnp.ones(())}
    extra = {"running": running, "count": jnp.zeros(())}
    return vae, variables["stats"], state.create(variables["params"], rule, config.seed, extra=extra), rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(RunArguments):
    """Train chime's video VAE."""

    folder: Path = RUNS / "video_vae"


def main(arguments: Arguments) -> None:
    """Run the stages one after the other, from where the folder is."""
    start_logging()
    config = CONFIG
    vae, stats, trainer, rule = start(config)
    logging.info("%d parameters", state.parameter_count(trainer.params))
    update = step.make_step(gradient.of_carrying_loss(make_loss(config, vae, stats)), rule)
    done = 0
    for number, stage in enumerate(config.stages):
        done += stage.steps
        batches = data.batches(VideoClips(stage.frames), stage.batch, config.seed + number)
        run = arguments.loop(done, save_every=200)
        trainer = loop.train(run, trainer, update, batches, describe=dataclasses.asdict(config))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
