"""From training runs to the codecs that ship.

Export measures the statistics that put latents on one scale. Sound has a mean and a standard deviation per entry. The
latter is never less than a quarter of the common one: an entry that carries nothing stays small, instead of becoming
noise that a generator would have to model. For the picture, the principal axes of the latents become their channels,
and strong ones are damped (`principal_axes`).

    python -m experiments.chime.export_codecs --parts video_vae audio_vae
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.chime import train_audio_vae, train_video_vae, train_vocoder
from experiments.chime.world import encoders, recipe
from experiments.chime.world.clips import HELD_OUT_SEED
from experiments.script import read_flags, start_logging
from omniforcing_jax.codecs.audio_vae import CHIME_AUDIO_VAE
from omniforcing_jax.codecs.video_config import CHIME_VIDEO_VAE
from omniforcing_jax.codecs.vocoder import CHIME_VOCODER
from omniforcing_jax.io import weights

SMALLEST_STD = 0.25
STATISTICS_CLIPS = 48
STATISTICS_SECONDS = 5

log = logging.getLogger(__name__)


def measured(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (bounded) standard deviation of raw latents [..., C], entry by entry."""
    flat = latents.reshape(-1, latents.shape[-1])
    std = flat.std(0)
    common = jnp.sqrt(jnp.mean(std**2))
    return flat.mean(0), jnp.maximum(std, SMALLEST_STD * common)


def principal_axes(latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Axes [C, C] (a column each), means [C] and scales [C] that half whiten raw latents [..., C].

    As the codec was trained, one axis (is there a ball?) has most of the variance, and those that tell colours apart
    have a hundredth each: noise hides them until the last steps of a trajectory. Dividing by the root of the standard
    deviation keeps coarse before fine, yet brings them up. The mean variance becomes one.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    variances, axes = jnp.linalg.eigh(jnp.cov(flat.T))
    variances, axes = variances[::-1], axes[:, ::-1]
    scales = variances**0.25 * jnp.sqrt(jnp.mean(jnp.sqrt(variances)))
    return axes, flat.mean(0) @ axes, scales


def turn(params: dict, axes: jax.Array) -> dict:
    """Build a rotation of latent channels into the convolutions on both sides of them: same pictures, new axes."""
    last, first = params["encoder"]["conv_out"], params["decoder"]["conv_in"]
    channels = axes.shape[0]
    turned = {name: jnp.concatenate([x[..., :channels] @ axes, x[..., channels:]], -1) for name, x in last.items()}
    kernel = jnp.einsum("...co,ck->...ko", first["kernel"], axes)
    return {
        **params,
        "encoder": {**params["encoder"], "conv_out": turned},
        "decoder": {**params["decoder"], "conv_in": {**first, "kernel": kernel}},
    }


def video_from_run(folder: Path) -> dict:
    """Variables of the video VAE with its statistics measured."""
    vae, stats, fresh, _ = train_video_vae.start(train_video_vae.CONFIG)
    trainer = recipe.newest(folder, fresh)
    params = train_video_vae.fold_scale(trainer.ema, trainer.extra["running"])
    raw = [
        jax.jit(lambda p, x: vae.apply({"params": p, "stats": stats}, x, method="moments")[0])(params, pixels)
        for pixels, _ in (encoders.render_clips(seeds, STATISTICS_SECONDS) for seeds in _groups())
    ]
    axes, mean, std = principal_axes(jnp.concatenate(raw))
    log.info("share of the variance by principal axis: %s", (std**4 / jnp.sum(std**4)).round(3))
    return {"params": turn(params, axes), "stats": {"latents_mean": mean, "latents_std": std}}


def audio_from_run(folder: Path) -> dict:
    """Variables of the audio VAE with its statistics measured."""
    _, stats, fresh, _ = train_audio_vae.start(train_audio_vae.CONFIG)
    variables = {"params": recipe.newest(folder, fresh).ema, "stats": stats}
    sounds = (encoders.render_clips(seeds, STATISTICS_SECONDS)[1] for seeds in _groups())
    raw = [encoders.encode_sound(variables, sound) for sound in sounds]
    mean, std = measured(jnp.concatenate(raw))
    return {"params": variables["params"], "stats": {"mean": mean, "std": std}}


def vocoder_from_run(folder: Path) -> dict:
    """Variables of the vocoder: the trained network once for each channel."""
    _, fresh, _ = train_vocoder.start(train_vocoder.CONFIG)
    return {"params": train_vocoder.side_by_side(recipe.newest(folder, fresh).ema)}


def _groups(size: int = 8) -> list[range]:
    return [range(HELD_OUT_SEED + i, HELD_OUT_SEED + i + size) for i in range(0, STATISTICS_CLIPS, size)]


PARTS: dict[str, tuple[Any, Any]] = {
    "video_vae": (video_from_run, CHIME_VIDEO_VAE),
    "audio_vae": (audio_from_run, CHIME_AUDIO_VAE),
    "vocoder": (vocoder_from_run, CHIME_VOCODER),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write the newest checkpoints of the codecs' runs as a weights folder in half precision."""

    runs: Path = recipe.RUNS
    """Folder of the runs, each with the name of its part."""
    out: Path = encoders.FOLDER
    """Folder to write."""
    parts: tuple[Literal["video_vae", "audio_vae", "vocoder"], ...] = ("video_vae", "audio_vae", "vocoder")
    """Codecs to export."""


def main(arguments: Arguments) -> None:
    """Export part by part."""
    start_logging()
    for part in arguments.parts:
        from_run, config = PARTS[part]
        weights.save_component(arguments.out, part, from_run(arguments.runs / part), config.to_dict(), jnp.float16)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
