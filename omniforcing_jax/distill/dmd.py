"""Distribution matching: the gradient that pulls a generator's clips towards a teacher's, and the critic's loss.

A frozen teacher says where clips like its own lie. A critic, which is trained on the generator's clips, says where
those lie. The difference of both at one noise level is the way to go. Both are bidirectional and see the whole clip,
whatever the generator is.

Source: DMD2 as in OmniForcing (arXiv 2603.11647); OmniForcing@50a271f:ltx_distillation/dmd.py.
"""

import dataclasses
import enum
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from omniforcing_jax.distill.clip_network import ClipNetwork
from omniforcing_jax.distill.flow import flow_loss, noise_like
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.layout import Block, block_of_frames
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.schedule import add_noise, sigma_lookup
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import Config, require
from omniforcing_jax.text.contexts import TextContexts

TINY = 1e-8  # keeps the normaliser from zero, as the reference has it


class BlockWeights(enum.StrEnum):
    """How much the blocks of a clip weigh against each other; a ramp ends at one and is not renormalised."""

    UNIFORM = "uniform"
    LINEAR_RAMP = "linear_ramp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmdConfig(Config):
    """How clips are scored.

    Attributes:
        guidance: Of the teacher's score; the critic has none.
        guidance_from: Each clip has a share of the guidance, drawn evenly from here to 1, as scales of 1 to 3 are with
            0 and a scale of 3. 1 is the same guidance for all.
        first: Lowest timestep, of a thousand, for the noise level of scoring; draws below are clamped.
        last: Highest one; draws above are clamped.
        block_weights: See BlockWeights.
        ramp_from: Weight of block 0 on a linear ramp.
        video_weight: Of the picture, in the generator's loss and the critic's.
        audio_weight: Of the sound.
    """

    guidance: GuidanceConfig = GuidanceConfig(video=StreamGuidance(cfg=3.0), audio=StreamGuidance(cfg=5.0))
    guidance_from: float = 1.0
    first: int = 20
    last: int = 980
    block_weights: BlockWeights = BlockWeights.UNIFORM
    ramp_from: float = 0.5
    video_weight: float = 1.0
    audio_weight: float = 1.0

    def __post_init__(self):
        require(0 <= self.guidance_from <= 1, "guidance_from", self.guidance_from, "must be in [0, 1]")
        require(0 < self.first <= self.last <= 1000, "first", self.first, f"must lie between 1 and last={self.last}")
        require(0 <= self.ramp_from <= 1, "ramp_from", self.ramp_from, "must be in [0, 1]")


@struct.dataclass
class Scorer:
    """What scores a clip.

    Attributes:
        teacher: Frozen parameters.
        critic: Parameters of the same network, trained on the generator's clips.
        network: What network both are.
    """

    teacher: Transformer
    critic: Transformer
    network: ClipNetwork


def scoring_sigma(timestep: Int[Array, " *shape"], config: DmdConfig) -> Float[Array, " *shape"]:
    """Look a timestep (0..999) up in the reversed schedule of a thousand steps, clamped to the config's range."""
    return jnp.asarray(sigma_lookup(), jnp.float32)[jnp.clip(timestep, config.first, config.last)]


def draw_scoring_sigma(key: Array, batch: int, *, config: DmdConfig) -> Float[Array, " B"]:
    """Draw one noise level per sample, for all frames of both streams; see `scoring_sigma`."""
    return scoring_sigma(jax.random.randint(key, (batch,), 0, 1000), config)


def draw_guidance_share(key: Array, batch: int, *, config: DmdConfig) -> Float[Array, " B"] | None:
    """Draw each sample's share of the guidance; None where all have the whole of it."""
    return None if config.guidance_from == 1 else jax.random.uniform(key, (batch,), minval=config.guidance_from)


def noise_clip(clip: Streams, noise: Streams, sigma: Float[Array, " B"]) -> Streams:
    """Noise both streams to one level per sample."""
    return jax.tree.map(lambda x, n: add_noise(x, n, sigma), clip, noise)


def kl_gradient(
    x0: Float[Array, "B T C"],
    fake: Float[Array, "B T C"],
    real: Float[Array, "B T C"],
    counts: Float[Array, " T"] | None = None,
) -> Float[Array, "B T C"]:
    """Return (fake - real) / mean |x0 - real|, the mean over each sample of one stream.

    Args:
        x0: The generator's clip.
        fake: What the critic makes of it, noised.
        real: What the guided teacher makes of it.
        counts: 1 for tokens over which the mean goes, 0 for others; None takes all.
    """
    distance = jnp.abs(x0 - real)
    if counts is None:
        mean = jnp.mean(distance, axis=(1, 2), keepdims=True)
    else:
        total = jnp.sum(distance * counts[None, :, None], axis=(1, 2), keepdims=True)
        mean = total / (x0.shape[-1] * jnp.sum(counts))
    return jnp.nan_to_num((fake - real) / (mean + TINY))


def token_weights(blocks: tuple[Block, ...], like: Streams, config: DmdConfig) -> Streams:
    """Return the weight [T] of every token of both streams."""
    uniform = config.block_weights is BlockWeights.UNIFORM
    ramp = jnp.linspace(1.0 if uniform else config.ramp_from, 1.0, len(blocks))
    frames_v, frames_a = block_of_frames(blocks)
    per_frame = like.video.shape[1] // len(frames_v)
    return Streams(jnp.repeat(ramp[frames_v], per_frame), ramp[frames_a])


def matching_loss(
    x0: Float[Array, "B T C"], gradient: Float[Array, "B T C"], weights: Float[Array, " T"]
) -> Float[Array, ""]:
    """Half the mean squared distance to x0 - gradient, held fixed: its gradient is weights x gradient / size."""
    target = jax.lax.stop_gradient(x0 - gradient)
    return 0.5 * jnp.mean(weights[None, :, None] * (x0 - target) ** 2)


def generator_loss(
    x0: Streams, gradient: Streams, blocks: tuple[Block, ...], config: DmdConfig
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Sum the matching losses of both streams; the value is half the mean of gradient squared, a useful monitor."""
    losses = jax.tree.map(matching_loss, x0, gradient, token_weights(blocks, x0, config))
    total = config.video_weight * losses.video + config.audio_weight * losses.audio
    return total, {"dmd_video": losses.video, "dmd_audio": losses.audio}


def clip_cotangent(gradient: Streams, blocks: tuple[Block, ...], config: DmdConfig) -> Streams:
    """Return the gradient of `generator_loss` with respect to the clip, without a graph."""

    def pull(g: Float[Array, "B T C"], weights: Float[Array, " T"], strength: float) -> Float[Array, "B T C"]:
        return strength * weights[None, :, None] * g / g.size

    weights = token_weights(blocks, gradient, config)
    return Streams(
        video=pull(gradient.video, weights.video, config.video_weight),
        audio=pull(gradient.audio, weights.audio, config.audio_weight),
    )


def dmd_gradient(
    clip: Streams, scorer: Scorer, prompt: TextContexts, negative: TextContexts, key: Array, config: DmdConfig
) -> tuple[Streams, dict[str, Array]]:
    """Score a clip: noise it, ask teacher and critic, and take their normalised difference; no gradient flows.

    Args:
        clip: What the generator made, [B, T, C] and [B, A, E], float32.
        scorer: Teacher and critic.
        prompt: Contexts of the clip's prompts.
        negative: Of the negative prompt, as many rows.
        key: Spent on the noise level, the noise and the share of the guidance.
        config: See DmdConfig.

    Returns:
        The gradient of both streams, and mean absolute values of it before and after normalisation as metrics.
    """
    clip, scorer, prompt, negative = jax.lax.stop_gradient((clip, scorer, prompt, negative))
    for_sigma, for_noise = jax.random.split(key)
    sigma = draw_scoring_sigma(for_sigma, clip.video.shape[0], config=config)
    noisy = noise_clip(clip, noise_like(jax.random.split(for_noise), clip), sigma)
    share = draw_guidance_share(jax.random.fold_in(key, 2), clip.video.shape[0], config=config)
    real = scorer.network.guided_x0(scorer.teacher, prompt, negative, config.guidance, share)(noisy, sigma)
    fake = scorer.network.x0(scorer.critic, noisy, sigma, prompt)
    gradient = jax.tree.map(kl_gradient, clip, fake, real)
    gap, push = (jax.tree.map(lambda x: jnp.mean(jnp.abs(x)), tree) for tree in (_minus(fake, real), gradient))
    metrics = {"gap_video": gap.video, "gap_audio": gap.audio, "push_video": push.video, "push_audio": push.audio}
    return gradient, metrics


def _minus(one: Streams, other: Streams) -> Streams:
    return jax.tree.map(jnp.subtract, one, other)


def score_clip(
    clip: Streams,
    scorer: Scorer,
    prompt: TextContexts,
    negative: TextContexts,
    key: Array,
    blocks: tuple[Block, ...],
    config: DmdConfig,
) -> tuple[Streams, dict[str, Array]]:
    """Return the gradient of the generator's loss with respect to its clip, and metrics; see `dmd_gradient`."""
    gradient, metrics = dmd_gradient(clip, scorer, prompt, negative, key, config)
    loss, parts = generator_loss(clip, gradient, blocks, config)
    return clip_cotangent(gradient, blocks, config), {"dmd": loss, **parts, **metrics}


def critic_loss(
    critic: Transformer,
    network: ClipNetwork,
    clip: Streams,
    prompt: TextContexts,
    key: Array,
    config: DmdConfig,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Flow matching of the critic on the generator's own clips, at the noise levels of scoring.

    Args:
        critic: The parameters that learn.
        network: What network they are.
        clip: From a rollout of its own; no gradient flows into it.
        prompt: Contexts of its prompts.
        key: Spent on the noise level and the noise.
        config: See DmdConfig.
    """

    def predict(noisy: Streams, sigma: Array) -> Streams:
        return network.velocity(critic, noisy, sigma, prompt)

    weights = (config.video_weight, config.audio_weight)
    return flow_loss(predict, jax.lax.stop_gradient(clip), key, partial(draw_scoring_sigma, config=config), weights)
