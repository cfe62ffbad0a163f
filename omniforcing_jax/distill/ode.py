"""Stage 2: a causal student learns to map any entry of a teacher's trajectory to its end.

Two contexts are offered. Noisy: one masked forward, in which a block sees its past at whatever levels
were drawn there, as the reference trains. Clean: the past comes from a second, masked forward of the
clean clip, which is what a stream will see. Both are the same loss over another view.
"""

import enum
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.layout import Block, block_of_frames
from omniforcing_jax.model.dual_stream import Text
from omniforcing_jax.model.positions import Rotaries
from omniforcing_jax.model.transformer import Transformer, predict
from omniforcing_jax.model.view import Sigmas, masked, on_context, one_sigma
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.schedule import add_noise
from omniforcing_jax.streams import Streams


class Context(enum.StrEnum):
    """What a block sees of its past while it learns."""

    NOISY = "noisy"
    CLEAN = "clean"


class Error(enum.StrEnum):
    """What is squared.

    Of x0, as the reference has it: it suits a student that jumps to x0 and is re-noised. Of the velocity, the same
    divided by sigma squared: it suits one that walks by Euler steps, of which the late ones set what is seen.
    """

    X0 = "x0"
    VELOCITY = "velocity"


@struct.dataclass
class Trajectory:
    """Entries of a teacher's trajectories, from noise (first) to the clip (last).

    Attributes:
      video: [E, B, T, C] tokens.
      audio: [E, B, A, C].
      sigmas: [E], falling to 0.
    """

    video: ArrayLeaf
    audio: ArrayLeaf
    sigmas: ArrayLeaf


def draw_entries(key: Array, batch: int, blocks: int, entries: int, *, clean_too: bool) -> Int[Array, "B K"]:
    """Draw an entry for every block; the clean one only where it serves as context."""
    return jax.random.randint(key, (batch, blocks), 0, entries if clean_too else entries - 1)


def draw_given(key: Array, batch: int, share: float) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
    """Draw the samples whose picture is given clean, and those whose sound is: half of the share each, never both."""
    draw = jax.random.uniform(key, (batch,))
    return draw < share / 2, (draw >= share / 2) & (draw < share)


def pick(entries: Float[Array, "E B T C"], index: Int[Array, "B T"]) -> Float[Array, "B T C"]:
    """Take entry index[b, t] of every token."""
    return jnp.take_along_axis(entries, index[None, :, :, None], axis=0)[0]


def masked_mean(error: Float[Array, "B T C"], counts: Float[Array, "B T"]) -> Float[Array, ""]:
    """Mean over the elements whose tokens count; zero where none does."""
    return jnp.sum(error * counts[..., None]) / jnp.maximum(error.shape[-1] * jnp.sum(counts), 1.0)


@struct.dataclass
class Guided:
    """Classifier-free guidance that a student learns into its one prediction.

    The regression's target is pushed away from what the student itself says of the empty prompt. Where the loss is
    least, prediction = empty + strength * (unguided - empty), which a sampler would need two passes for.

    Attributes:
      empty: text keys and values of the empty prompt; some of the training's own prompts must be empty too.
      strength: what a sampler would call the guidance scale, above 1.

    Source: model guidance, arXiv 2502.12154, with the scale said in the sampler's terms.
    """

    empty: Text
    strength: float = struct.field(pytree_node=False)


def guidance_push(
    strength: float, with_prompt: Float[Array, "B T C"], with_empty: Float[Array, "B T C"]
) -> Float[Array, "B T C"]:
    """Return what guidance adds to a target velocity, without gradient; see Guided."""
    return jax.lax.stop_gradient((1 - 1 / strength) * (with_prompt - with_empty))


def ode_loss(
    params: Transformer,
    config: ModelConfig,
    trajectory: Trajectory,
    text: Text,
    rotaries: Rotaries,
    blocks: tuple[Block, ...],
    key: Array,
    *,
    context: Context,
    context_noise: float = 0.0,
    error: Error = Error.X0,
    guided: Guided | None = None,
    given: float = 0.0,
    since: Int[Array, " B"] | None = None,
    audio_weight: float = 1.0,
    dtype: DTypeLike = jnp.float32,
    remat: Callable | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared error over the blocks that are noisy, each at a level of its own.

    Args:
      params: the student.
      config: what network it is.
      trajectory: entries to start from; the last one is the target.
      text: text keys and values of the prompts.
      rotaries: rotations of the whole clip.
      blocks: the block table; audio takes the level of its block, not of its proportion in the clip.
      key: spent on levels, and on the context's noise.
      context: see Context.
      context_noise: sigma of the clean context.
      error: see Error.
      guided: see Guided; None regresses on the trajectory itself.
      given: share of the samples in which one stream, either one, is given throughout, at context noise: what a
        stream sees that is driven by a sound or a picture.
      since: the first block of each sample that is learned; the ones before are context only, such as the past of a
        stream whose prompt has changed. None learns all.
      audio_weight: weight of the audio term.
      dtype: type to compute in.
      remat: wraps the scan over layers.

    Source: OmniForcing stage 2, specs/omniforcing.md 7.3; the clean context (5.5 there), guidance and given streams
    are ours.
    """
    for_levels, for_context, for_given = jax.random.split(key, 3)
    entries, batch, tokens = trajectory.video.shape[:3]
    frames_v, frames_a = block_of_frames(blocks)
    per_frame = tokens // len(frames_v)
    chosen = draw_entries(for_levels, batch, len(blocks), entries, clean_too=context is Context.NOISY)
    index_v, index_a = chosen[:, frames_v], chosen[:, frames_a]
    target_v, target_a = trajectory.video[-1], trajectory.audio[-1]
    level = jnp.full((batch,), context_noise, jnp.float32)
    context_v, context_a = (
        add_noise(x, jax.random.normal(jax.random.fold_in(for_context, i), x.shape, jnp.float32), level)
        for i, x in enumerate((target_v, target_a))
    )
    given_v, given_a = draw_given(for_given, batch, given)
    noisy_v = _put(given_v, context_v, pick(trajectory.video, jnp.repeat(index_v, per_frame, axis=1)))
    noisy_a = _put(given_a, context_a, pick(trajectory.audio, index_a))
    sigma_v = _put(given_v, level[:, None], trajectory.sigmas[index_v])
    sigma_a = _put(given_a, level[:, None], trajectory.sigmas[index_a])
    sigmas = Sigmas(video=sigma_v, audio=sigma_a)
    ask = partial(predict, dtype=dtype, remat=remat)

    noisy = Streams(noisy_v, noisy_a)

    def velocities(params: Transformer, text: Text) -> Streams:
        if context is Context.NOISY:
            view = masked(config, rotaries, sigmas, blocks)
            return ask(params, config, noisy, view, text).velocity
        clean = masked(config, rotaries, one_sigma(level), blocks)
        past = ask(params, config, Streams(context_v, context_a), clean, text).fresh
        view = on_context(config, rotaries, sigmas, blocks)
        return ask(params, config, noisy, view, text, past=past).velocity

    velocity_v, velocity_a = velocities(params, text)
    missing_v, missing_a = _put(given_v, 0.0, sigma_v), _put(given_a, 0.0, sigma_a)  # level 0: nothing to learn
    if since is not None:
        missing_v = jnp.where(frames_v[None] >= since[:, None], missing_v, 0.0)
        missing_a = jnp.where(frames_a[None] >= since[:, None], missing_a, 0.0)
    missing_v = jnp.repeat(missing_v, per_frame, axis=1)
    if guided is not None:
        empty_v, empty_a = velocities(*jax.lax.stop_gradient((params, guided.empty)))
        target_v = target_v - missing_v[..., None] * guidance_push(guided.strength, velocity_v, empty_v)
        target_a = target_a - missing_a[..., None] * guidance_push(guided.strength, velocity_a, empty_a)
    loss_v = _loss(velocity_v, noisy_v, target_v, missing_v, error)
    loss_a = _loss(velocity_a, noisy_a, target_a, missing_a, error)
    return loss_v + audio_weight * loss_a, {"video": loss_v, "audio": loss_a}


def _put(where: Bool[Array, " B"], new: Array | float, old: Array) -> Array:
    """Take `new` for some samples and `old` for the others."""
    return jnp.where(where.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


def _loss(velocity: Array, noisy: Array, target: Array, sigma: Float[Array, "B T"], error: Error) -> Array:
    counts = sigma > 1e-6
    missed = (noisy - sigma[..., None] * velocity - target) ** 2
    if error is Error.VELOCITY:
        missed = missed / jnp.where(counts, sigma, 1.0)[..., None] ** 2
    return masked_mean(missed, counts.astype(jnp.float32))
