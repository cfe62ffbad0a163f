"""From a request to a plan: the request is checked against the weights' configs before any weights are loaded."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from omniforcing_jax.config import SamplerConfig
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.eight_bits import eight_bit_cache
from omniforcing_jax.pipeline import budget, checks, text_source
from omniforcing_jax.pipeline.loras import NO_LORAS, Loras, read_loras
from omniforcing_jax.pipeline.pipeline import Pipeline, PipelineConfig, with_weights_dtype
from omniforcing_jax.rollout import StaticConfig
from omniforcing_jax.stream.conditioning.condition import ConditioningPlan, plan_conditioning
from omniforcing_jax.stream.prompt_change.history import exact_depth
from omniforcing_jax.stream.request import EXACT, StreamRequest
from omniforcing_jax.stream.working_memory import working_bytes
from omniforcing_jax.strict_json import require

LOOKAHEAD = 3
"""Default look-ahead in latent frames for upsamplers, and decoders that are not causal: one second.

Errors by look-ahead are in experiments/LOG.md.
"""


class StreamPlan(NamedTuple):
    """A request that was checked against weights.

    Attributes:
        config: The configs of the weights.
        request: The request.
        static: Static config of the stream's programs.
        blocks: Length of the stream; None is endless.
        history: Later blocks whose latents are kept.
        lookahead: Latent frames by which the picture is delayed.
        conditioning: Picture and sound that are given.
        loras: LoRAs that were read for the network.
    """

    config: PipelineConfig
    request: StreamRequest
    static: StaticConfig
    blocks: int | None
    history: int
    lookahead: int
    conditioning: ConditioningPlan = ConditioningPlan()
    loras: Loras = NO_LORAS


def plan_stream(weights: checks.Weights, request: StreamRequest) -> StreamPlan:
    """Check a request without loading any weights.

    Raises:
        ValueError: In one line, whatever is wrong with it.
    """
    config = checks.pipeline_config(weights, upsampler=request.upscale)
    plan = resolve_request(config, request)
    rule = "the weights are loaded already in another type; give it to load_pipeline"
    is_loaded = isinstance(weights, Pipeline)
    require(not is_loaded or plan.config == config, "weights_dtype", request.weights_dtype, rule)
    text_source.check_text(config, request.prompts, request.contexts, weights)
    plan = plan._replace(conditioning=plan_conditioning(config, plan.static, plan.blocks, request.start, request.drive))
    is_given = plan.conditioning.picture_blocks or plan.conditioning.sound_blocks
    rule = "must be a single one with given picture or sound, which a batch cannot have"
    require(len(request.prompts) == 1 or not is_given, "prompt", request.prompts, rule)
    plan = plan._replace(loras=read_loras(config.model, request.loras))
    check_stream_memory(plan, request.dtype, is_loaded)
    return plan


def resolve_request(config: PipelineConfig, request: StreamRequest) -> StreamPlan:
    """Derive sizes and lengths from a request and the weights' configs. Text, files and memory are not checked.

    Raises:
        ValueError: In one line, if the weights are no student or cannot stream at this size, length or window.
    """
    config = with_weights_dtype(config, request.weights_dtype)
    sampler = checks.adjust_sampler(checks.student_sampler(config), request.window, request.steps)
    checks.check_mesh(config)
    has_cameras = request.camera is None or config.model.camera is not None
    require(has_cameras, "camera", request.camera, f"{config.name!r} has no camera attention")
    grid = checks.check_side(config, request.height, request.width)
    cache = eight_bit_cache(request.cache_dtype)
    static = StaticConfig(config.model, sampler, grid, jnp.dtype(request.dtype), cache)
    kept = exact_depth(static) if request.history == EXACT else request.history or 0
    return StreamPlan(
        config=config,
        request=request,
        static=static,
        blocks=None if request.seconds is None else count_blocks(sampler, request.seconds),
        history=max(sampler.past_blocks, kept),
        lookahead=choose_lookahead(config, request.lookahead),
    )


def check_stream_memory(plan: StreamPlan, dtype: DTypeLike, loaded: bool) -> None:
    """Refuse a stream that does not fit into memory.

    Args:
        plan: The plan of the stream.
        dtype: Type that its weights are loaded in.
        loaded: Whether they are in memory already.

    Raises:
        ValueError: If more memory is needed than is free; has the figures.
    """
    rows = len(plan.request.prompts)
    needed = working_bytes(plan.config, plan.static, rows, plan.history, plan.lookahead)
    budget.check_memory(plan.config, dtype, loaded, needed | plan.loras.working(plan.static.dtype))


def choose_lookahead(config: PipelineConfig, lookahead: int | None) -> int:
    """Choose by how many latent frames the picture is delayed: as requested, or as suits decoder and upsampler.

    Raises:
        ValueError: If it is not 0 for a causal decoder, which has no use for it.
    """
    is_causal = config.video_vae.causal_decoder and config.upsampler is None
    if lookahead is None:
        return 0 if is_causal else LOOKAHEAD
    rule = "must be 0, because the picture's decoder is causal and uses no later frames"
    require(lookahead == 0 or not is_causal, "lookahead", lookahead, rule)
    return lookahead


def count_blocks(sampler: SamplerConfig, seconds: int | float) -> int:
    """Count the blocks of a stream of so many whole seconds.

    Raises:
        ValueError: If no stream of this layout has that length; names the nearest lengths.
    """
    return sampler.layout.block_count(latent_frames(sampler.layout.frames_for(seconds)))
