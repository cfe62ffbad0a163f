"""Stage 2: a causal student learns to map any entry of a teacher's trajectory to its end.

A block sees its past in one of two ways. Noisy: there is one masked forward, in which every block is at the level that
was drawn for it, as the reference trains. Clean: the past comes from a second, masked forward of the clean clip, which
is what a stream will see. Both are the same loss over another view.

Diffusion forcing (arXiv 2407.01392) is the same regression on real clips: `noise_clip` gives a clip the entries of a
straight trajectory, and each block is at a level of its own.

Three steps: `draw_example` draws levels and conditioning, `predict` asks the network, `regression_loss` compares.

Source: arXiv 2603.11647, stage 2; OmniForcing@50a271f:ltx_distillation/ode/ode_regression.py. The clean context,
guidance and conditioning are ours.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omniforcing_jax.distill.clip_network import ClipNetwork
from omniforcing_jax.distill.flow import noise_like
from omniforcing_jax.layout import Block, block_of_frames
from omniforcing_jax.model import transformer
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.transformer import Prediction, Transformer
from omniforcing_jax.model.view import Sigmas, View, one_sigma
from omniforcing_jax.nn.attention import NO_PAST, Sites, as_past
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.schedule import add_noise
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import Config


class Context(enum.StrEnum):
    """What a block sees of its past while it learns."""

    NOISY = "noisy"
    CLEAN = "clean"


class Error(enum.StrEnum):
    """Which error is squared.

    Of x0, as the reference has it: it suits a student that jumps to x0 and is re-noised. Of the velocity, the same
    divided by sigma squared: it suits one that walks by Euler steps, of which the late ones set what is seen.
    """

    X0 = "x0"
    VELOCITY = "velocity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OdeConfig(Config):
    """How a student regresses on trajectories.

    Attributes:
        context: See Context.
        context_noise: Sigma of the clean context.
        error: See Error.
        guidance: Scale of classifier-free guidance that is learned into the prediction, as a sampler would call it; 1
            regresses on the trajectory itself.
        conditioned: Share of the samples in which one stream, either one, is a conditioning stream: clean throughout,
            at context noise. A stream sees the same when it is driven by a sound or a picture.
        audio_weight: Weight of the audio term.
    """

    context: Context = Context.NOISY
    context_noise: float = 0.0
    error: Error = Error.X0
    guidance: float = 1.0
    conditioned: float = 0.0
    audio_weight: float = 1.0


@struct.dataclass
class Trajectory:
    """Entries of a teacher's trajectories, from noise (first) to the clip (last).

    Attributes:
        video: [n, B, T, C] tokens.
        audio: [n, B, A, E].
        sigmas: [n], falling to 0.
        since: The first block of each sample that is learned, int [B]. Blocks before it are context only, such as the
            past of a stream whose prompt has changed. None learns all.
    """

    video: ArrayLeaf
    audio: ArrayLeaf
    sigmas: ArrayLeaf
    since: ArrayLeaf | None = None


@struct.dataclass
class Prompts:
    """Text keys and values of the prompts, and of the empty prompt where guidance is learned.

    Guidance pushes the regression's target away from what the student itself says of the empty prompt. Where the loss
    is least, prediction = empty + scale * (unguided - empty), which a sampler would need two passes for. Some of the
    training's own prompts must be empty too.

    Source: model guidance, arXiv 2502.12154, with the scale in the sampler's terms.
    """

    prompt: Text
    empty: Text | None = None


@struct.dataclass
class Example:
    """A batch as the student sees it.

    Attributes:
        clip: The trajectories' ends, [B, T, C] and [B, A, E].
        noisy: The clip, every block at its level; a conditioning stream at context noise.
        context: The clip at context noise.
        context_sigma: Its level, [B].
        sigmas: Levels of `noisy` per latent frame, [B, F] and [B, A].
        missing: Per token, the level that is to be taken away, [B, T] and [B, A]; 0 where nothing is learned.
    """

    clip: Streams
    noisy: Streams
    context: Streams
    context_sigma: ArrayLeaf
    sigmas: Sigmas
    missing: Streams


def noise_clip(clip: Streams, sigmas: Float[Array, " n"], key: Array) -> Trajectory:
    """Make the straight trajectory from noise to a real clip.

    Args:
        clip: Clean latents, [B, T, C] and [B, A, E].
        sigmas: Levels of the entries, falling to 0.
        key: Spent on the noise.
    """
    noise = noise_like(jax.random.split(key), clip)
    entries = jax.tree.map(
        lambda x, n: jax.vmap(lambda sigma: add_noise(x, n, jnp.full(len(x), sigma)))(sigmas), clip, noise
    )
    return Trajectory(video=entries.video, audio=entries.audio, sigmas=sigmas)


def draw_entries(key: Array, batch: int, blocks: int, entries: int, *, clean_too: bool) -> Int[Array, "B K"]:
    """Draw an entry for every block; the clean one only where it serves as context."""
    return jax.random.randint(key, (batch, blocks), 0, entries if clean_too else entries - 1)


def draw_conditioned(key: Array, batch: int, share: float) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """Draw the samples whose picture is conditioning, and those whose sound is: half of the share each, never both."""
    draw = jax.random.uniform(key, (batch,))
    return draw < share / 2, (draw >= share / 2) & (draw < share)


def pick(entries: Float[Array, "n B T C"], index: Int[Array, "B T"]) -> Float[Array, "B T C"]:
    """Take entry index[b, t] of every token."""
    return jnp.take_along_axis(entries, index[None, :, :, None], axis=0)[0]


def masked_mean(error: Float[Array, "B T C"], counts: Float[Array, "B T"]) -> Float[Array, ""]:
    """Mean over the elements whose tokens count; zero where none does."""
    return jnp.sum(error * counts[..., None]) / jnp.maximum(error.shape[-1] * jnp.sum(counts), 1.0)


def ode_loss(
    params: Transformer,
    trajectory: Trajectory,
    text: Prompts,
    key: Array,
    blocks: tuple[Block, ...],
    network: ClipNetwork,
    config: OdeConfig,
) -> tuple[Array, dict[str, Array]]:
    """Squared error over the blocks that are noisy, each at a level of its own.

    Args:
        params: The student's.
        trajectory: Entries to start from; the last one is the target.
        text: Keys and values of the prompts, with those of the empty prompt if `config.guidance` is not 1.
        key: Spent on levels, on the context's noise and on what is conditioning.
        blocks: The block table; audio takes the level of its block, not of its proportion in the clip.
        network: The student.
        config: See OdeConfig.
    """
    example = draw_example(trajectory, key, blocks, config)
    velocity, target = predict(params, text.prompt, example, blocks, network, config), example.clip
    if text.empty is not None:
        held, empty = jax.lax.stop_gradient((params, text.empty))
        unprompted = predict(held, empty, example, blocks, network, config)
        target = guided_target(target, example.missing, velocity, unprompted, config.guidance)
    return regression_loss(velocity, target, example, config)


def draw_example(trajectory: Trajectory, key: Array, blocks: tuple[Block, ...], config: OdeConfig) -> Example:
    """Draw a level for every block, and the samples of which one stream is conditioning."""
    for_levels, for_context, for_conditioning = jax.random.split(key, 3)
    entries, batch, tokens = trajectory.video.shape[:3]
    frames_v, frames_a = block_of_frames(blocks)
    per_frame = tokens // len(frames_v)
    clean_too = config.context is Context.NOISY
    chosen = draw_entries(for_levels, batch, len(blocks), entries, clean_too=clean_too)
    clip = Streams(trajectory.video[-1], trajectory.audio[-1])
    level = jnp.full((batch,), config.context_noise, jnp.float32)
    noise = noise_like([jax.random.fold_in(for_context, i) for i in range(2)], clip)
    context = jax.tree.map(lambda x, n: add_noise(x, n, level), clip, noise)
    is_v, is_a = draw_conditioned(for_conditioning, batch, config.conditioned)
    noisy = Streams(
        _put(is_v, context.video, pick(trajectory.video, jnp.repeat(chosen[:, frames_v], per_frame, axis=1))),
        _put(is_a, context.audio, pick(trajectory.audio, chosen[:, frames_a])),
    )
    sigma_v, sigma_a = trajectory.sigmas[chosen[:, frames_v]], trajectory.sigmas[chosen[:, frames_a]]
    sigmas = Sigmas(video=_put(is_v, level[:, None], sigma_v), audio=_put(is_a, level[:, None], sigma_a))
    missing_v, missing_a = _put(is_v, 0.0, sigma_v), _put(is_a, 0.0, sigma_a)
    if trajectory.since is not None:
        missing_v = jnp.where(frames_v[None] >= trajectory.since[:, None], missing_v, 0.0)
        missing_a = jnp.where(frames_a[None] >= trajectory.since[:, None], missing_a, 0.0)
    missing = Streams(jnp.repeat(missing_v, per_frame, axis=1), missing_a)
    return Example(clip=clip, noisy=noisy, context=context, context_sigma=level, sigmas=sigmas, missing=missing)


def predict(
    params: Transformer,
    text: Text,
    example: Example,
    blocks: tuple[Block, ...],
    network: ClipNetwork,
    config: OdeConfig,
) -> Streams:
    """Predict the velocity of every block: in one masked forward, or on a clean past from a second one."""

    def ask(tokens: Streams, view: View, past: Sites = NO_PAST) -> Prediction:
        options = {"past": past, "dtype": network.dtype, "remat": network.remat}
        return transformer.predict(params, network.model, tokens, view, text, **options)

    if config.context is Context.NOISY:
        made = ask(example.noisy, network.masked(example.sigmas, blocks))
    else:
        clean = ask(example.context, network.masked(one_sigma(example.context_sigma), blocks))
        made = ask(example.noisy, network.on_context(example.sigmas, blocks), as_past(clean.fresh))
    return made.velocity


def guided_target(target: Streams, missing: Streams, velocity: Streams, unprompted: Streams, scale: float) -> Streams:
    """Move a clip to where guidance would have it, given the student's velocities with and without its prompt."""

    def move(x: Array, sigma: Array, with_prompt: Array, with_empty: Array) -> Array:
        return x - sigma[..., None] * guidance_push(scale, with_prompt, with_empty)

    return jax.tree.map(move, target, missing, velocity, unprompted)


def guidance_push(
    scale: float, with_prompt: Float[Array, "B T C"], with_empty: Float[Array, "B T C"]
) -> Float[Array, "B T C"]:
    """Return what guidance adds to a target velocity, without gradient; see Prompts."""
    return jax.lax.stop_gradient((1 - 1 / scale) * (with_prompt - with_empty))


def regression_loss(
    velocity: Streams, target: Streams, example: Example, config: OdeConfig
) -> tuple[Array, dict[str, Array]]:
    """Weigh the squared errors of both streams; each is a metric too."""

    def loss(v: Array, noisy: Array, target: Array, sigma: Array) -> Array:
        return stream_loss(v, noisy, target, sigma, config.error)

    losses = jax.tree.map(loss, velocity, example.noisy, target, example.missing)
    return losses.video + config.audio_weight * losses.audio, {"video": losses.video, "audio": losses.audio}


def stream_loss(
    velocity: Float[Array, "B T C"],
    noisy: Float[Array, "B T C"],
    target: Float[Array, "B T C"],
    sigma: Float[Array, "B T"],
    error: Error,
) -> Float[Array, ""]:
    """Mean squared error of one stream over the tokens whose level is not 0: a clean token has nothing to learn."""
    counts = sigma > 1e-6
    missed = (noisy - sigma[..., None] * velocity - target) ** 2
    if error is Error.VELOCITY:
        missed = missed / jnp.where(counts, sigma, 1.0)[..., None] ** 2
    return masked_mean(missed, counts.astype(jnp.float32))


def _put(where: Bool[Array, " B"], new: Array | float, old: Array) -> Array:
    """Take `new` for some samples and `old` for the others."""
    return jnp.where(where.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
