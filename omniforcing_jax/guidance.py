"""Guidance of a bidirectional teacher, on clean estimates, and the Euler trajectory that follows it.

Pure functions over a callable that predicts x0; no network is built here. Up to four passes go through the network as
one batch: the prompt, the negative prompt, the prompt with perturbed self-attention (STG), and the prompt with both
crossings off (modality isolation).

Source: ltx-core@1.0.0:components/guiders.py, ltx-core@1.0.0:components/diffusion_steps.py.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.schedule import euler_step
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import Config, require

PredictX0 = Callable[[Streams, Array, PyTree, Perturbation], Streams]  # latents, sigma [B], context, masks [L, B]


class Pass(enum.Enum):
    """One forward of a guided prediction; the others are compared with the first."""

    PROMPT = enum.auto()
    NEGATIVE = enum.auto()
    PERTURBED = enum.auto()
    ISOLATED = enum.auto()


class Stg(enum.StrEnum):
    """How the self-attention of a perturbed layer is perturbed.

    VALUES: every token gets its own value instead of the mixture (ltx-core since 1.0.0).
    DROP: the whole residual is left out (older code, OmniForcing's copy). Outputs differ by O(1).
    """

    VALUES = "values"
    DROP = "drop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamGuidance(Config):
    """Strengths for one stream; the defaults leave the prediction unchanged.

    Attributes:
        cfg: Pushes away from the negative prompt; 1 is off.
        stg: Pushes away from the perturbed pass; 0 is off.
        modality: Pushes away from the isolated pass; 1 is off.
        rescale: Moves the guided estimate's standard deviation towards the plain one's; 0 is off, 1 matches it.
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0

    def __post_init__(self):
        for name in ("cfg", "stg", "modality"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "must be a finite number")
        require(0 <= self.rescale <= 1, "rescale", self.rescale, "must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Config):
    """Guidance of both streams.

    Attributes:
        video: Strengths for video.
        audio: Strengths for audio.
        stg_layers: Layers whose self-attentions are perturbed, in both streams at once.
        stg: How they are perturbed.
        rescale_over_batch: Use one standard deviation over all samples, as the reference does, so that a sample depends
            on its neighbours. Otherwise each sample has its own.
    """

    video: StreamGuidance = StreamGuidance()
    audio: StreamGuidance = StreamGuidance()
    stg_layers: tuple[int, ...] = ()
    stg: Stg = Stg.VALUES
    rescale_over_batch: bool = False

    def __post_init__(self):
        uses_stg = self.video.stg != 0 or self.audio.stg != 0
        require(bool(self.stg_layers) or not uses_stg, "stg_layers", self.stg_layers, "must not be empty with stg on")

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes that these strengths need."""
        streams = (self.video, self.audio)
        needed = {
            Pass.PROMPT: True,
            Pass.NEGATIVE: any(stream.cfg != 1 for stream in streams),
            Pass.PERTURBED: any(stream.stg != 0 for stream in streams),
            Pass.ISOLATED: any(stream.modality != 1 for stream in streams),
        }
        return tuple(which for which, is_needed in needed.items() if is_needed)


LTX2_GUIDANCE = GuidanceConfig(
    video=StreamGuidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7),
    audio=StreamGuidance(cfg=7.0, stg=1.0, modality=3.0, rescale=0.7),
    stg_layers=(29,),
)


def guided_x0(
    predict_x0: PredictX0,
    latents: Streams,
    sigma: Float[Array, "*samples"],
    prompt: PyTree,
    negative: PyTree | None,
    config: GuidanceConfig,
    layers: int,
    share: Float[Array, " B"] | None = None,
) -> Streams:
    """Predict clean latents of both streams with guidance, float32.

    Args:
        predict_x0: The network, at any batch size.
        latents: Noisy latents, [B, ...] each.
        sigma: Their noise level: one for all, or one per sample.
        prompt: The network's text input: a tree of arrays [B, ...].
        negative: The same for the negative prompt. May be None where cfg is off.
        config: The strengths.
        layers: L, the layers of the network.
        share: How much of the guidance each sample has; None is all of it.
    """
    predicted = predict_passes(predict_x0, latents, sigma, prompt, negative, config, layers)
    strengths, over_batch = Streams(config.video, config.audio), config.rescale_over_batch
    of_stream = ({which: x0[i] for which, x0 in predicted.items()} for i in range(len(strengths)))
    return Streams(*(combine_passes(*each, over_batch, share) for each in zip(of_stream, strengths, strict=True)))


def predict_passes(
    predict_x0: PredictX0,
    latents: Streams,
    sigma: Float[Array, "*samples"],
    prompt: PyTree,
    negative: PyTree | None,
    config: GuidanceConfig,
    layers: int,
) -> dict[Pass, Streams]:
    """Predict clean latents once per pass that the strengths need; arguments as in `guided_x0`.

    Passes whose contexts have the same shape go through the network as one batch.

    Raises:
        ValueError: The config needs a negative prompt and there is none, or names a layer that the network lacks.
    """
    require(all(i < layers for i in config.stg_layers), "stg_layers", config.stg_layers, f"must be below {layers}")
    if negative is None and Pass.NEGATIVE in config.passes:
        raise ValueError(f"cfg={config.video.cfg}, {config.audio.cfg}: needs a negative prompt")
    groups: dict[PyTree, dict[Pass, PyTree]] = {}
    for which in config.passes:
        context = negative if which is Pass.NEGATIVE else prompt
        leaves, tree = jax.tree.flatten(context)
        groups.setdefault((tree, *(leaf.shape for leaf in leaves)), {})[which] = context
    predicted = {}
    for contexts in groups.values():
        predicted |= _predict_together(predict_x0, latents, sigma, contexts, config, layers)
    return predicted


def _predict_together(
    predict_x0: PredictX0,
    latents: Streams,
    sigma: Float[Array, "*samples"],
    contexts: Mapping[Pass, PyTree],
    config: GuidanceConfig,
    layers: int,
) -> dict[Pass, Streams]:
    """Run some passes as one batch: all samples of the first pass, then all of the next."""
    batch, count = len(latents.video), len(contexts)
    repeated = jax.tree.map(lambda x: jnp.concatenate([x] * count), latents)
    context = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *contexts.values())
    perturbation = perturbation_of_passes(tuple(contexts), config, layers, batch)
    levels = jnp.tile(jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (batch,)), count)
    pieces = jax.tree.map(lambda x: jnp.split(x, count), predict_x0(repeated, levels, context, perturbation))
    return {which: Streams(pieces.video[i], pieces.audio[i]) for i, which in enumerate(contexts)}


def perturbation_of_passes(passes: Sequence[Pass], config: GuidanceConfig, layers: int, batch: int) -> Perturbation:
    """Return what each pass leaves out, for a batch of all samples of one pass after another."""
    chosen = jnp.isin(jnp.arange(layers), jnp.array(config.stg_layers, jnp.int32))

    def leave_out(which: Pass, layer_mask: Array) -> Array | None:
        if which not in passes:
            return None
        columns = jnp.repeat(jnp.array([each is which for each in passes]), batch)
        return 1.0 - (layer_mask[:, None] & columns[None, :]).astype(jnp.float32)

    perturbed = leave_out(Pass.PERTURBED, chosen)
    crossing = leave_out(Pass.ISOLATED, jnp.ones(layers, bool))
    if config.stg is Stg.DROP:
        return Perturbation(video_self=perturbed, audio_self=perturbed, a2v=crossing, v2a=crossing)
    return Perturbation(video_mix=perturbed, audio_mix=perturbed, a2v=crossing, v2a=crossing)


def combine_passes(
    predicted: Mapping[Pass, Float[Array, " B *shape"]],
    strengths: StreamGuidance,
    over_batch: bool,
    share: Float[Array, " B"] | None = None,
) -> Float[Array, " B *shape"]:
    """Combine the passes of one stream: add weighted differences to the prompt's estimate, then rescale.

    Args:
        predicted: Clean latents of each pass.
        strengths: The stream's.
        over_batch: See GuidanceConfig.rescale_over_batch.
        share: Of the differences, for each sample; None adds all of them.
    """
    plain = predicted[Pass.PROMPT].astype(jnp.float32)
    weights = {
        Pass.NEGATIVE: strengths.cfg - 1,
        Pass.PERTURBED: strengths.stg,
        Pass.ISOLATED: strengths.modality - 1,
    }
    push = sum(
        weight * (plain - predicted[which].astype(jnp.float32))
        for which, weight in weights.items()
        if which in predicted
    )
    guided = plain + (push if share is None else share.reshape(-1, *(1,) * (plain.ndim - 1)) * push)
    return rescale(guided, plain, strengths.rescale, over_batch)


def rescale(
    guided: Float[Array, " B *shape"], plain: Float[Array, " B *shape"], amount: float, over_batch: bool
) -> Float[Array, " B *shape"]:
    """Move the spread of `guided` towards that of `plain`, per sample or over the whole batch."""
    if amount == 0:
        return guided
    axes = tuple(range(0 if over_batch else 1, plain.ndim))
    ratio = jnp.std(plain, axes, ddof=1, keepdims=True) / jnp.std(guided, axes, ddof=1, keepdims=True)
    return guided * jnp.broadcast_to(amount * ratio + (1 - amount), guided.shape)


def euler_trajectory(
    predict: Callable[[Streams, Array], Streams], noise: Streams, sigmas: Float[Array, " J"]
) -> Streams:
    """Follow the probability flow from noise to a clip.

    Args:
        predict: Clean latents from noisy ones and their sigma, such as `guided_x0` with the rest bound.
        noise: The start, [B, ...] each.
        sigmas: Noise levels from 1 to 0; one prediction for each but the last.

    Returns:
        Latents at every sigma, [J, B, ...] each, float32: first the noise, last the clip. The entries of a distillation
        pair are `trajectory[indices]` with the indices of `schedule.snap`.
    """
    start = jax.tree.map(lambda x: x.astype(jnp.float32), noise)

    def step(latents: Streams, pair: Array) -> tuple[Streams, Streams]:
        x0 = predict(latents, pair[0])
        latents = jax.tree.map(lambda x, clean: euler_step(x, clean, pair[0], pair[1]), latents, x0)
        return latents, latents

    _, entries = jax.lax.scan(step, start, jnp.stack([sigmas[:-1], sigmas[1:]], axis=1))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, entries)
