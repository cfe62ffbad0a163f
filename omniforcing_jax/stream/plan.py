"""From a request to a plan: what the weights make of it, checked before any of them is loaded."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.codecs.video_config import VideoVAEConfig
from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.pipeline import budget, checks, text_source
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.conditioning.condition import ConditioningPlan, plan_conditioning
from omniforcing_jax.stream.request import StreamRequest
from omniforcing_jax.stream.working_memory import working_bytes
from omniforcing_jax.strict_json import require

LOOKAHEAD = 3
"""Latent frames, one second: the default for decoders that are not causal (experiments/LOG.md has the errors)."""


class StreamPlan(NamedTuple):
    """A request that was checked against weights.

    Attributes:
        config: The weights' configs.
        request: What was asked for.
        static: What is static in the stream's programs.
        blocks: Length of the stream; None is endless.
        history: Later blocks whose latents are kept.
        lookahead: Latent frames by which the picture is delayed.
        conditioning: What the stream begins with, and what drives it.
    """

    config: PipelineConfig
    request: StreamRequest
    static: StaticConfig
    blocks: int | None
    history: int
    lookahead: int
    conditioning: ConditioningPlan = ConditioningPlan()


def plan_stream(weights: checks.Weights, request: StreamRequest) -> StreamPlan:
    """Check a request, without loading any weights.

    Raises:
        ValueError: in one line, whatever is wrong with it.
    """
    config = checks.config_of(weights)
    plan = resolve_request(config, request)
    text_source.check_text(config, request.prompts, request.contexts, weights)
    plan = plan._replace(conditioning=plan_conditioning(config, plan.static, plan.blocks, request.start, request.drive))
    is_given = plan.conditioning.picture_blocks or plan.conditioning.sound_blocks
    rule = "must be one: given latents are those of one row"
    require(len(request.prompts) == 1 or not is_given, "prompt", request.prompts, rule)
    check_memory(plan, request.dtype, isinstance(weights, Pipeline))
    return plan


def resolve_request(config: PipelineConfig, request: StreamRequest) -> StreamPlan:
    """Resolve what follows from a request and the weights' configs; text, given files and memory are not looked at.

    Raises:
        ValueError: in one line, if the weights are no student or cannot stream at such a size, length or window.
    """
    sampler = checks.adjust_sampler(checks.student_sampler(config), request.window, request.steps)
    checks.check_mesh(config)
    grid = config.grid(request.height or config.resolution[0], request.width or config.resolution[1])
    return StreamPlan(
        config=config,
        request=request,
        static=StaticConfig(config.model, sampler, grid, jnp.dtype(request.dtype)),
        blocks=None if request.seconds is None else count_blocks(sampler, request.seconds),
        history=max(sampler.past_blocks, request.history or 0),
        lookahead=choose_lookahead(config.video_vae, request.lookahead),
    )


def check_memory(plan: StreamPlan, dtype: DTypeLike, loaded: bool) -> None:
    """Refuse a stream that cannot fit.

    Args:
        plan: Of the stream.
        dtype: The type that its weights are loaded in.
        loaded: Whether they are in memory already.

    Raises:
        ValueError: with the figures, if more memory is needed than free.
    """
    rows = len(plan.request.prompts)
    needed = working_bytes(plan.config, plan.static, rows, plan.history, plan.lookahead)
    budget.check_memory(plan.config, dtype, loaded, needed)


def choose_lookahead(config: VideoVAEConfig, lookahead: int | None) -> int:
    """Choose how many latent frames the picture is delayed: what was asked for, or what suits the decoder.

    Raises:
        ValueError: if it is not 0 where a causal decoder has no use for it.
    """
    if lookahead is None:
        return 0 if config.causal_decoder else LOOKAHEAD
    rule = "must be 0, the picture's decoder is causal and looks at nothing ahead"
    require(lookahead == 0 or not config.causal_decoder, "lookahead", lookahead, rule)
    return lookahead


def count_blocks(sampler: SamplerConfig, seconds: int | float) -> int:
    """Count the blocks of a stream of so many whole seconds.

    Raises:
        ValueError: if no stream of this layout is that long; names the nearest lengths.
    """
    return sampler.layout.block_count(latent_frames(sampler.layout.frames_for(seconds)))
