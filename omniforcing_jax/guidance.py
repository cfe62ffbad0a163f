"""Guidance of a bidirectional teacher, on clean estimates, and the Euler trajectory it gives.

Pure functions over a callable that predicts x0; no network is built here. Up to four passes go
through the network as one batch: the prompt, the negative prompt, the prompt with perturbed
self-attention (STG), and the prompt with both crossings off (modality isolation).
Source: ltx-core@1.0.0:components/guiders.py, ltx-core@1.0.0:components/diffusion_steps.py.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.schedule import euler_step
from omniforcing_jax.strict_json import Config, require

Latents = tuple[Array, Array]  # (video, audio), batch first
PredictX0 = Callable[[Latents, Array, PyTree, Perturbation], Latents]  # latents, sigma [B], context, keep [L, B]


class Pass(enum.Enum):
    """One way to ask the network; the first is the estimate that the others are held against."""

    PROMPT = enum.auto()
    NEGATIVE = enum.auto()
    PERTURBED = enum.auto()
    ISOLATED = enum.auto()


class Stg(enum.StrEnum):
    """What the self-attention of a perturbed layer does.

    VALUES: every token's own value goes through instead of the mixture (ltx-core since 1.0.0).
    DROP: the residual is left out as a whole (older code, OmniForcing's copy). Outputs differ by O(1).
    """

    VALUES = "values"
    DROP = "drop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamGuidance(Config):
    """Strengths for one stream; the defaults leave the prediction as it is.

    Attributes:
      cfg: 1 is off; pushes away from the negative prompt.
      stg: 0 is off; pushes away from the perturbed pass.
      modality: 1 is off; pushes away from the isolated pass.
      rescale: 0 is off; 1 gives the guided estimate the standard deviation of the plain one.
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0

    def __post_init__(self):
        require(0 <= self.rescale <= 1, "rescale", self.rescale, "must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Config):
    """Guidance of both streams.

    Attributes:
      video, audio: the strengths.
      stg_layers: layers whose self-attentions are perturbed, in both streams at once.
      stg: what that does to them.
      rescale_over_batch: one standard deviation over all samples, as the reference has it; a sample then
        depends on its neighbours. Off, each sample has its own.
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
        """The passes that the strengths need."""
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
    latents: Latents,
    sigma: Float[Array, "*samples"],
    prompt: PyTree,
    negative: PyTree | None,
    config: GuidanceConfig,
    layers: int,
) -> Latents:
    """Predict clean latents of both streams with guidance, float32.

    Args:
      predict_x0: The network at some batch size.
      latents: Noisy latents (video, audio), [B, ...] each.
      sigma: Their noise level: one for all, or one per sample.
      prompt: What the network takes as text: a tree of arrays [B, ...].
      negative: The same for the negative prompt; may be None where cfg is off.
      config: The strengths.
      layers: Layers of the network.
    """
    predicted = predict_passes(predict_x0, latents, sigma, prompt, negative, config, layers)
    video = {which: streams[0] for which, streams in predicted.items()}
    audio = {which: streams[1] for which, streams in predicted.items()}
    return (
        combine_passes(video, config.video, config.rescale_over_batch),
        combine_passes(audio, config.audio, config.rescale_over_batch),
    )


def predict_passes(
    predict_x0: PredictX0,
    latents: Latents,
    sigma: Float[Array, "*samples"],
    prompt: PyTree,
    negative: PyTree | None,
    config: GuidanceConfig,
    layers: int,
) -> dict[Pass, Latents]:
    """Predict clean latents once per pass that the strengths need; arguments as in `guided_x0`.

    Passes whose contexts have the same shape go through the network as one batch.

    Raises:
      ValueError: The config needs a negative prompt and there is none, or names a layer that the network lacks.
    """
    require(all(i < layers for i in config.stg_layers), "stg_layers", config.stg_layers, f"must be below {layers}")
    if negative is None and Pass.NEGATIVE in config.passes:
        raise ValueError(f"cfg={config.video.cfg}, {config.audio.cfg}: needs a negative prompt")
    groups: dict[PyTree, list[Pass]] = {}
    for which in config.passes:
        context = negative if which is Pass.NEGATIVE else prompt
        leaves, tree = jax.tree.flatten(context)
        groups.setdefault((tree, *(leaf.shape for leaf in leaves)), []).append(which)
    predicted = {}
    for group in groups.values():
        contexts = [negative if which is Pass.NEGATIVE else prompt for which in group]
        predicted |= _predict_together(
            predict_x0, latents, sigma, dict(zip(group, contexts, strict=True)), config, layers
        )
    return predicted


def _predict_together(
    predict_x0: PredictX0,
    latents: Latents,
    sigma: Float[Array, "*samples"],
    contexts: Mapping[Pass, PyTree],
    config: GuidanceConfig,
    layers: int,
) -> dict[Pass, Latents]:
    """Run some passes as one batch: pass by pass, all samples of each."""
    batch, count = latents[0].shape[0], len(contexts)
    video, audio = (jnp.concatenate([x] * count) for x in latents)
    context = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *contexts.values())
    perturbation = perturbation_of_passes(tuple(contexts), config, layers, batch)
    levels = jnp.tile(jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (batch,)), count)
    x0 = predict_x0((video, audio), levels, context, perturbation)
    pieces_v, pieces_a = (jnp.split(x, count) for x in x0)
    return dict(zip(contexts, zip(pieces_v, pieces_a, strict=True), strict=True))


def perturbation_of_passes(passes: Sequence[Pass], config: GuidanceConfig, layers: int, batch: int) -> Perturbation:
    """Say what each pass leaves out, for a batch in which the passes lie one after another."""
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
    predicted: Mapping[Pass, Float[Array, " B *shape"]], strengths: StreamGuidance, over_batch: bool
) -> Float[Array, " B *shape"]:
    """Combine the passes of one stream: differences are added to the prompt's estimate, then rescaled."""
    plain = predicted[Pass.PROMPT].astype(jnp.float32)
    weights = {
        Pass.NEGATIVE: strengths.cfg - 1,
        Pass.PERTURBED: strengths.stg,
        Pass.ISOLATED: strengths.modality - 1,
    }
    guided = plain + sum(
        weight * (plain - predicted[which].astype(jnp.float32))
        for which, weight in weights.items()
        if which in predicted
    )
    return rescale(guided, plain, strengths.rescale, over_batch)


def rescale(
    guided: Float[Array, " B *shape"], plain: Float[Array, " B *shape"], amount: float, over_batch: bool
) -> Float[Array, " B *shape"]:
    """Bring the spread of `guided` towards that of `plain`, per sample or over the whole batch."""
    if amount == 0:
        return guided
    axes = tuple(range(0 if over_batch else 1, plain.ndim))
    ratio = jnp.std(plain, axes, ddof=1, keepdims=True) / jnp.std(guided, axes, ddof=1, keepdims=True)
    return guided * jnp.broadcast_to(amount * ratio + (1 - amount), guided.shape)


def euler_trajectory(
    predict: Callable[[Latents, Array], Latents], noise: Latents, sigmas: Float[Array, " K"]
) -> Latents:
    """Follow the probability flow from noise to a clip.

    Args:
      predict: Clean latents from noisy ones and their sigma, e.g. `guided_x0` with the rest bound.
      noise: Where it starts, [B, ...] each.
      sigmas: Noise levels from 1 to 0; one prediction for each but the last.

    Returns:
      Latents at every sigma, [K, B, ...] each, float32; the first is the noise, the last the clip. The entries
      of a distillation pair are `trajectory[indices]` with the indices of `schedule.snap`.
    """
    start = jax.tree.map(lambda x: x.astype(jnp.float32), noise)

    def step(latents: Latents, pair: Array) -> tuple[Latents, Latents]:
        x0 = predict(latents, pair[0])
        latents = jax.tree.map(lambda x, clean: euler_step(x, clean, pair[0], pair[1]), latents, x0)
        return latents, latents

    _, entries = jax.lax.scan(step, start, jnp.stack([sigmas[:-1], sigmas[1:]], axis=1))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, entries)
