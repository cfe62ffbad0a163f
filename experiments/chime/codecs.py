"""From training runs to shipped codecs, and from shipped codecs to functions.

Export measures the statistics that put latents on one scale. Sound: mean per entry, and the standard deviation
per entry but never less than a quarter of the common one, so that an entry that carries nothing stays
small instead of becoming noise that a generator would have to model. Picture: the latents' principal axes become
their channels, and strong ones are damped (`principal_axes`).

Command: python -m experiments.chime.codecs   (after the three trainings)
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.chime import train_audio_vae, train_video_vae, world
from experiments.chime.clips import HELD_OUT_SEED, to_float
from omniforcing_jax import layout
from omniforcing_jax.codecs.audio_vae import CHIME_AUDIO_VAE, AudioVAE
from omniforcing_jax.codecs.mel import LTX2_MEL, fit_rows, log_mel
from omniforcing_jax.codecs.video_config import CHIME_VIDEO_VAE
from omniforcing_jax.codecs.video_vae import VideoVAE
from omniforcing_jax.codecs.vocoder import CHIME_VOCODER
from omniforcing_jax.io import weights
from omniforcing_jax.train import checkpoint, state

ASSETS = Path("omniforcing_jax/assets/chime/codecs")
VIDEO: Any = VideoVAE(CHIME_VIDEO_VAE)
AUDIO: Any = AudioVAE(CHIME_AUDIO_VAE)
SMALLEST_STD = 0.25
STATISTICS_CLIPS = 48
STATISTICS_SECONDS = 5

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The encoders of both streams and the decoder to log-mel, ready to use."""

    video_variables: dict
    audio_variables: dict

    def encode_video(self, pixels: jax.Array) -> jax.Array:
        """Encode pixels [B, T, H, W, 3] in [-1, 1] to normalised latents [B, F, h, w, C]."""
        return _encode_video(self.video_variables, pixels)

    def encode_sound(self, waveform: jax.Array) -> jax.Array:
        """Encode 16 kHz stereo [B, samples, 2], whole seconds, to normalised latents [B, A, C]."""
        return _encode_sound(self.audio_variables, waveform)

    def decode_sound(self, normalised: jax.Array) -> jax.Array:
        """Decode audio latents [B, A, C] to log-mel [B, rows, 64, 2]."""
        return _decode_sound(self.audio_variables, normalised)


@jax.jit
def _encode_video(variables: dict, pixels: jax.Array) -> jax.Array:
    return VIDEO.apply(variables, pixels, method="encode")


@jax.jit
def _encode_sound(variables: dict, waveform: jax.Array) -> jax.Array:
    seconds = waveform.shape[1] // LTX2_MEL.sample_rate
    mel = fit_rows(
        log_mel(waveform), CHIME_AUDIO_VAE.mel_rows(layout.audio_latents(layout.latent_frames(1 + 24 * seconds)))
    )
    return AUDIO.apply(variables, mel, method="encode")


@jax.jit
def _decode_sound(variables: dict, normalised: jax.Array) -> jax.Array:
    return AUDIO.apply(variables, normalised, method="decode")


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


def render_clips(seeds: range, seconds: int) -> tuple[jax.Array, jax.Array]:
    """Render worlds from their beginning: pixels [B, T, H, W, 3] in [-1, 1] and 16 kHz sound [B, samples, 2]."""
    frames, rate = layout.PREFIX.frames_for(seconds), LTX2_MEL.sample_rate
    worlds = [world.sample_world(seed) for seed in seeds]
    pixels = jnp.stack([to_float(world.render_video(w, frames)) for w in worlds])
    return pixels, jnp.stack([world.render_audio(w, seconds * rate, rate) for w in worlds])


def averaged(folder: Path, like: state.TrainState) -> state.TrainState:
    """Read the newest checkpoint of a run.

    Raises:
      ValueError: if there is none.
    """
    found = checkpoint.restore(checkpoint.open_manager(folder / "checkpoints"), like)
    if found is None:
        raise ValueError(f"{folder}: no checkpoint")
    log.info("%s: step %d", folder, int(found.state.step))
    return found.state


def video_from_run(folder: Path) -> dict:
    """Variables of the video VAE with its statistics measured."""
    vae, stats, fresh, _ = train_video_vae.start(train_video_vae.CONFIG)
    trainer = averaged(folder, fresh)
    params = train_video_vae.fold_scale(trainer.ema, trainer.extra["running"])
    raw = [
        jax.jit(lambda p, x: vae.apply({"params": p, "stats": stats}, x, method="moments")[0])(params, pixels)
        for pixels, _ in (render_clips(seeds, STATISTICS_SECONDS) for seeds in _groups())
    ]
    axes, mean, std = principal_axes(jnp.concatenate(raw))
    log.info("share of the variance by principal axis: %s", (std**4 / jnp.sum(std**4)).round(3))
    return {"params": turn(params, axes), "stats": {"latents_mean": mean, "latents_std": std}}


def audio_from_run(folder: Path) -> dict:
    """Variables of the audio VAE with its statistics measured."""
    _, stats, fresh, _ = train_audio_vae.start(train_audio_vae.CONFIG)
    variables = {"params": averaged(folder, fresh).ema, "stats": stats}
    raw = [
        _encode_sound(variables, sound) for _, sound in (render_clips(seeds, STATISTICS_SECONDS) for seeds in _groups())
    ]
    mean, std = measured(jnp.concatenate(raw))
    return {"params": variables["params"], "stats": {"mean": mean, "std": std}}


def vocoder_from_run(folder: Path) -> dict:
    """Variables of the vocoder."""
    from experiments.chime import train_vocoder  # it trains on what this module decodes

    _, fresh, _ = train_vocoder.start(train_vocoder.CONFIG)
    return {"params": averaged(folder, fresh).ema}


def _groups(size: int = 8) -> list[range]:
    return [range(HELD_OUT_SEED + i, HELD_OUT_SEED + i + size) for i in range(0, STATISTICS_CLIPS, size)]


def load_encoders(folder: Path = ASSETS) -> Encoders:
    """Read the shipped encoders."""
    video = jax.eval_shape(VideoVAE(CHIME_VIDEO_VAE).init, jax.random.key(0), jnp.zeros((1, 9, 64, 64, 3)))
    audio = jax.eval_shape(AudioVAE(CHIME_AUDIO_VAE).init, jax.random.key(0), jnp.zeros((1, 5, 64, 2)))
    return Encoders(
        weights.load_component(folder, "video_vae", video), weights.load_component(folder, "audio_vae", audio)
    )


PARTS: dict[str, tuple[Any, Any]] = {
    "video_vae": (video_from_run, CHIME_VIDEO_VAE),
    "audio_vae": (audio_from_run, CHIME_AUDIO_VAE),
    "vocoder": (vocoder_from_run, CHIME_VOCODER),
}


def main(
    runs: Path = Path("runs/chime"), out: Path = ASSETS, parts: tuple[str, ...] = ("video_vae", "audio_vae", "vocoder")
) -> None:
    """Write the newest checkpoints of the codecs' runs as a weights folder in half precision."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    for part in parts:
        from_run, config = PARTS[part]
        weights.save_component(out, part, from_run(runs / part), config.to_dict(), jnp.float16)


if __name__ == "__main__":
    tyro.cli(main)
