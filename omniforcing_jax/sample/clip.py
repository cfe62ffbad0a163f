"""Clips from a bidirectional teacher: guided steps over the whole clip, then one decode.

A job of its own, not a stream: nothing can be shown before the last step.

Source: ltx-core@1.0.0:components/guiders.py, ltx-core@1.0.0:components/diffusion_steps.py.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Key

from omniforcing_jax import layout
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.guidance import GuidanceConfig, Pass, guided_x0
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Positions, clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.model.whole_clip import predict_x0
from omniforcing_jax.pipeline import budget, checks, text_source
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.pipeline.shipped import TEACHER
from omniforcing_jax.sample.request import GUIDANCE, SECONDS, STEPS, ClipRequest
from omniforcing_jax.schedule import add_noise, euler_step, fresh_shares, renew, to_velocity
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.decode import decode_clip
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts

LATER_NOISE = 2**31 - 1  # folded into the seed's key, apart from the places of clips


class ClipStaticConfig(NamedTuple):
    """What is static in one Euler step.

    Attributes:
        config: The network.
        guidance: Strengths.
        dtype: Type to compute in.
    """

    config: ModelConfig
    guidance: GuidanceConfig
    dtype: DTypeLike


@partial(jax.jit, static_argnames="static", donate_argnames="latents")
def clip_step(
    params: Transformer,
    latents: Streams,
    sigmas: Float[Array, "2"],
    fresh: Streams | None,
    share: Float[Array, ""],
    prompt: TextContexts,
    negative: TextContexts | None,
    positions: Positions,
    *,
    static: ClipStaticConfig,
) -> Streams:
    """Take one guided step of whole clips, from the first of two sigmas to the second.

    `fresh` is noise, a `share` of which takes the place of what the clips carry on; None is Euler's step.
    """
    config, guidance, dtype = static

    def ask(noisy: Streams, sigma: Array, context: TextContexts, perturbation: Perturbation) -> Streams:
        return predict_x0(params, config, noisy, sigma, context, rotaries(config, positions), perturbation, dtype=dtype)

    x0 = guided_x0(ask, latents, sigmas[0], prompt, negative, guidance, config.layers)
    if fresh is None:
        return jax.tree.map(lambda x, clean: euler_step(x, clean, sigmas[0], sigmas[1]), latents, x0)

    def step(x: Array, clean: Array, drawn: Array) -> Array:
        carried = clean + to_velocity(x, clean, sigmas[0])
        return add_noise(clean, renew(carried, drawn, share), sigmas[1])

    return jax.tree.map(step, latents, x0, fresh)


@partial(jax.jit, static_argnames=("config", "rows", "tokens"))
def clip_noise(key: Key[Array, ""], *, config: ModelConfig, rows: int, tokens: tuple[int, int]) -> Streams:
    """Draw the noise that clips start from; clip i depends on the key and on i only."""

    def draw(i: Array) -> Streams:
        video, audio = jax.random.split(jax.random.fold_in(key, i))
        return Streams(
            video=jax.random.normal(video, (tokens[0], config.video.latent_channels)),
            audio=jax.random.normal(audio, (tokens[1], config.audio.latent_channels)),
        )

    return jax.vmap(draw)(jnp.arange(rows))


class ClipPlan(NamedTuple):
    """A request that was checked against weights.

    Attributes:
        config: The weights' configs.
        request: What was asked for.
        static: What is static.
        grid: Latent rows and columns.
        frames: Video latent frames.
        sigmas: Noise levels from 1 to 0.
        shares: Fresh share of the noise at each level, see `schedule.fresh_shares`; None draws none.
        contexts, negative_contexts: Text contexts, or files of them, instead of the weights' own encoder.
    """

    config: PipelineConfig
    request: ClipRequest
    static: ClipStaticConfig
    grid: tuple[int, int]
    frames: int
    sigmas: tuple[float, ...]
    shares: tuple[float, ...] | None
    contexts: text_source.TextSource
    negative_contexts: text_source.TextSource

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to show, one clip each."""
        return tuple(self.request.prompts)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of both streams."""
        return self.frames * self.grid[0] * self.grid[1], layout.audio_latents(self.frames)


def plan_clip(weights: checks.Weights, request: ClipRequest) -> ClipPlan:
    """Check a request, without loading any weights.

    Raises:
        ValueError: in one line, whatever is wrong with it.
    """
    config, guidance, levels = checks.config_of(weights), request.strengths, request.levels
    contexts, negative = text_source.open_source(request.contexts), request.negative_contexts
    checks.refuse_student(config)
    for layer in guidance.stg_layers:
        require(0 <= layer < config.model.layers, "layers", layer, f"must be below {config.model.layers}")
    plan = ClipPlan(
        config=config,
        request=request,
        static=ClipStaticConfig(config.model, guidance, jnp.dtype(request.dtype)),
        grid=config.grid(request.height or config.resolution[0], request.width or config.resolution[1]),
        frames=layout.latent_frames(layout.PREFIX.frames_for(request.seconds)),
        sigmas=levels,
        shares=tuple(fresh_shares(levels, request.renewal).tolist()) if request.renewal else None,
        contexts=contexts,
        negative_contexts=_negative_of(contexts) if negative is None else negative,
    )
    _check_text(plan, weights)
    scores = budget.score_bytes(config, len(plan.prompts) * len(guidance.passes), plan.tokens[0], plan.tokens[0])
    budget.check_memory(config, request.dtype, isinstance(weights, Pipeline), {"attention": scores})
    return plan


def _check_text(plan: ClipPlan, weights: checks.Weights) -> None:
    text_source.check_text(plan.config, plan.prompts, plan.contexts, weights)
    if Pass.NEGATIVE in plan.static.guidance.passes and plan.contexts is not None:
        negative = plan.negative_contexts
        require(negative is not None, "negative_contexts", None, "cfg other than 1 needs them beside contexts")
        text_source.check_text(plan.config, [""] * len(plan.prompts), negative)


class ClipOptions(TypedDict, total=False):
    """The fields of `ClipRequest` that `sample_clip` takes by name only."""

    height: int | None
    width: int | None
    dtype: DTypeLike
    contexts: text_source.TextSource
    negative_contexts: text_source.TextSource
    renewal: int | float
    sigmas: Sequence[float] | None


def sample_clip(
    weights: checks.Weights | None = None,
    prompts: Sequence[str] = (),
    seconds: int | float = SECONDS,
    steps: int = STEPS,
    guidance: GuidanceConfig | int | float = GUIDANCE,
    seed: int = 0,
    **options: Unpack[ClipOptions],
) -> list[Chunk]:
    """Sample one clip per prompt from a bidirectional teacher, all in one batch.

    Args:
        weights: A weights folder, a loaded pipeline, or the name of shipped weights. None is "chime-teacher".
        prompts: What to show, one clip each; at least one is required.
        seconds: Length in whole seconds; a clip has one frame more.
        steps: Denoising steps.
        guidance: Guidance strengths; a number is classifier-free guidance of both streams.
        seed: Random seed.
        **options: The other fields of `ClipRequest`, which describes them: height, width, dtype, contexts,
            negative_contexts, renewal, sigmas.

    Returns:
        One chunk per prompt that holds its whole clip; its index is the prompt's place.

    Raises:
        ValueError: in one line and before any work, whatever is wrong with the request.
    """
    weights = TEACHER if weights is None else weights
    request = ClipRequest(prompts=prompts, seconds=seconds, steps=steps, guidance=guidance, seed=seed, **options)
    plan = read_prompts(weights, plan_clip(weights, request))
    return sample_planned(checks.load(weights, plan.config, request.dtype), plan)


def read_prompts(weights: checks.Weights, plan: ClipPlan) -> ClipPlan:
    """Let a text encoder that lies on disk read a plan's prompts, before anything else is in memory.

    Raises:
        ValueError: as `request.read_prompts`.
    """
    texts = (*plan.prompts, *([""] if Pass.NEGATIVE in plan.static.guidance.passes else []))
    contexts = text_source.read_prompts(weights, plan.config, texts, plan.contexts, plan.static.dtype)
    negative = plan.negative_contexts
    return plan._replace(contexts=contexts, negative_contexts=_negative_of(contexts) if negative is None else negative)


def _negative_of(contexts: text_source.TextSource) -> text_source.TextSource:
    """Where contexts are looked up by prompt, the empty prompt is among them."""
    return contexts if isinstance(contexts, text_source.ContextStore) else None


def sample_planned(
    pipeline: Pipeline,
    plan: ClipPlan,
    on_step: Callable[[int], None] = lambda step: None,
    start: Streams | None = None,
) -> list[Chunk]:
    """Make the clips of a checked request.

    Args:
        pipeline: The teacher.
        plan: What `plan_clip` made of the request.
        on_step: Told the number of steps done after each.
        start: Latents at the first of the plan's sigmas, [B, T, C] and [B, A, E] float32, to begin with instead of
            noise; they are used up.

    Raises:
        ValueError: if `start` has not the shape of the clips' noise.
    """
    config, static = plan.config, plan.static
    draw = partial(clip_noise, config=config.model, rows=len(plan.prompts), tokens=plan.tokens)
    key = jax.random.key(plan.request.seed)
    if start is not None:
        for name, given, noise in zip(("video", "audio"), start, jax.eval_shape(draw, key), strict=True):
            require(given.shape == noise.shape, f"start: {name}", given.shape, f"must be {noise.shape}")
    prompt, negative = text_source.encode_text(pipeline, plan.prompts, plan.contexts), None
    if Pass.NEGATIVE in static.guidance.passes:
        negative = text_source.encode_text(pipeline, [""] * len(plan.prompts), plan.negative_contexts)
    positions = make_positions(config.model, clip_block(plan.frames, plan.tokens[1]), plan.grid)
    latents, later = draw(key) if start is None else start, jax.random.fold_in(key, LATER_NOISE)
    for step, pair in enumerate(itertools.pairwise(plan.sigmas)):
        fresh = None if plan.shares is None else draw(jax.random.fold_in(later, step))
        share = np.float32(0.0 if plan.shares is None else (*plan.shares, 0.0)[step + 1])
        latents = clip_step(
            *(pipeline.transformer, latents, np.array(pair, np.float32), fresh, share, prompt, negative, positions),
            static=static,
        )
        jax.block_until_ready(latents)
        on_step(step + 1)
    return decode_clips(pipeline, plan, latents)


def decode_clips(pipeline: Pipeline, plan: ClipPlan, latents: Streams) -> list[Chunk]:
    """Decode a plan's clips, [B, T, C] and [B, A, E] at sigma 0, each to a chunk that is the whole of it."""
    video, audio = decode_clip(pipeline.codecs, *latents, grid=plan.grid, dtype=plan.static.dtype)
    return [
        Chunk(
            index=index,
            video=pixels,
            video_start_s=0.0,
            audio=samples,
            audio_start_s=0.0,
            sample_rate=plan.config.vocoder.sample_rate,
        )
        for index, (pixels, samples) in enumerate(zip(np.asarray(video), np.asarray(audio), strict=True))
    ]
