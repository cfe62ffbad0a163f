"""From a request for clips to a plan: the request is checked against the weights' configs before any are loaded."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax import layout
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.guidance import GuidanceConfig, Pass
from omniforcing_jax.pipeline import budget, checks, text_source
from omniforcing_jax.pipeline.loras import Loras, read_loras
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.sample.keyframes import GuidePlan, plan_guides
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.strict_json import require


class ClipStaticConfig(NamedTuple):
    """Static config of one step.

    Attributes:
        config: The network.
        guidance: Guidance strengths.
        dtype: Type to compute in.
    """

    config: ModelConfig
    guidance: GuidanceConfig
    dtype: DTypeLike


class ClipPlan(NamedTuple):
    """A request that was checked against weights.

    Attributes:
        config: The configs of the weights.
        request: The request.
        static: Static config of the steps.
        grid: Latent rows and columns.
        frames: Video latent frames.
        sigmas: Noise levels from 1 to 0.
        shares: Fresh share of the noise at each level; None draws no fresh noise.
        contexts: Text contexts, or a file of them, instead of the weights' own text encoder.
        negative_contexts: The same for the negative prompt.
        loras: LoRAs that were read for the network.
        guides: Frames that the clips are given.
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
    loras: Loras
    guides: tuple[GuidePlan, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, one for each clip."""
        return tuple(self.request.prompts)

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """The negative prompt, once for each clip."""
        return (self.request.negative_prompt,) * len(self.prompts)

    @property
    def tokens(self) -> tuple[int, int]:
        """Number of video tokens and of audio tokens."""
        return self.frames * self.grid[0] * self.grid[1], layout.audio_latents(self.frames)

    @property
    def working(self) -> dict[str, int]:
        """Bytes of memory that the steps need besides the weights, by their use."""
        tokens = self.tokens[0] + sum(guide.tokens for guide in self.guides)
        rows = len(self.prompts) * len(self.static.guidance.passes)
        scores = {"attention": budget.score_bytes(self.config, rows, tokens, tokens)}
        return scores | self.loras.working(self.static.dtype)

    @property
    def needs_negative(self) -> bool:
        """Whether the guidance needs the negative prompt."""
        return Pass.NEGATIVE in self.static.guidance.passes


def plan_clip(weights: checks.Weights, request: ClipRequest) -> ClipPlan:
    """Check a request without loading any weights.

    Raises:
        ValueError: In one line, whatever is wrong with it.
    """
    config, guidance, levels = checks.pipeline_config(weights), request.strengths, request.levels
    contexts, negative = text_source.open_source(request.contexts), request.negative_contexts
    checks.refuse_student(config)
    has_cameras = request.camera is None or config.model.camera is not None
    require(has_cameras, "camera", request.camera, f"{config.name!r} has no camera attention")
    for layer in guidance.stg_layers:
        require(0 <= layer < config.model.layers, "layers", layer, f"must be below {config.model.layers}")
    grid, pixels = checks.check_side(config, request.height, request.width), layout.PREFIX.frames_for(request.seconds)
    loras = read_loras(config.model, request.loras)
    plan = ClipPlan(
        config=config,
        request=request,
        static=ClipStaticConfig(config.model, guidance, jnp.dtype(request.dtype)),
        grid=grid,
        frames=layout.latent_frames(pixels),
        sigmas=levels,
        shares=request.shares,
        contexts=contexts,
        negative_contexts=_negative_of(contexts) if negative is None else negative,
        loras=loras,
        guides=plan_guides(config, grid, pixels, request.keyframes, request.references, loras.headers),
    )
    _check_text(plan, weights)
    budget.check_memory(config, request.dtype, isinstance(weights, Pipeline), plan.working)
    return plan


def _check_text(plan: ClipPlan, weights: checks.Weights) -> None:
    text_source.check_text(plan.config, plan.prompts, plan.contexts, weights)
    if plan.needs_negative:
        negative, prompt = text_source.open_source(plan.negative_contexts), plan.request.negative_prompt
        rule = "must be given if there are contexts and cfg is not 1"
        require(negative is not None or plan.contexts is None, "negative_contexts", None, rule)
        has_prompts = negative is None or isinstance(negative, text_source.ContextStore)
        require(has_prompts or not prompt, "negative-prompt", prompt, "the negative contexts are of no prompt")
        text_source.check_text(plan.config, plan.negative_prompts, negative, weights)


def encode_plan_on_disk(weights: checks.Weights, plan: ClipPlan) -> ClipPlan:
    """Encode a plan's prompts with a text encoder that stays on disk, before anything else is in memory.

    Raises:
        ValueError: As `text_source.encode_on_disk`.
    """
    texts = (*plan.prompts, plan.request.negative_prompt) if plan.needs_negative else plan.prompts
    contexts = text_source.encode_on_disk(weights, plan.config, texts, plan.contexts, plan.static.dtype)
    negative = plan.negative_contexts
    return plan._replace(contexts=contexts, negative_contexts=_negative_of(contexts) if negative is None else negative)


def _negative_of(contexts: text_source.TextSource) -> text_source.TextSource:
    """Return contexts by prompt, among which the negative prompt is looked up; None for any other source."""
    return contexts if isinstance(contexts, text_source.ContextStore) else None
