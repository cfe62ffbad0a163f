"""Clips in two stages, as LTX-2's own pipelines make them: small, upsampled as latents, and refined in a few steps.

    low stage       the whole request at a smaller size
    between         video: the upsampler of the picture. Both streams: noise of the second stage's first level
    second stage    three steps at full size, without guidance

Keyframes are given to both stages, each at its own size. References are the first stage's, and so is the IC-LoRA that
reads them, with all other LoRAs of that request; without references LoRAs are in both. With one network the second
stage refines the sound too. With a network of its own, such as one with the distilled LoRA, it refines the picture
only, and the clip has the sound of the low stage.

Source: LTX-2@400fd31:ltx_pipelines/distilled.py, LTX-2@400fd31:ltx_pipelines/ti2vid_two_stages.py,
LTX-2@400fd31:ltx_pipelines/ic_lora.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from omniforcing_jax.codecs.upsampler import upsample_clip
from omniforcing_jax.codecs.upsampler_config import UpsamplerConfig
from omniforcing_jax.guidance import GuidanceConfig
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.layout import PREFIX
from omniforcing_jax.pipeline import budget, checks
from omniforcing_jax.pipeline.loras import NO_LORAS
from omniforcing_jax.pipeline.pipeline import Codecs, Pipeline, PipelineConfig, abstract_pipeline
from omniforcing_jax.pipeline.shipped import find_weights
from omniforcing_jax.pipeline.weights_folder import (
    TRANSFORMER,
    check_components,
    load_components,
    read_pipeline_config,
)
from omniforcing_jax.rollout import to_frames
from omniforcing_jax.sample.clip import ClipOptions, clip_noise, decode_clips, sample_latents
from omniforcing_jax.sample.keyframes import plan_guides
from omniforcing_jax.sample.plan import ClipPlan, encode_plan_on_disk, plan_clip
from omniforcing_jax.sample.request import SECONDS, ClipRequest
from omniforcing_jax.schedule import SECOND_STAGE, add_noise
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require

SECOND_NOISE = 2**31 - 2  # folded into the seed's key; neither the index of a clip nor `clip.LATER_NOISE`
REFINING: dict[str, Any] = {  # what of a request is otherwise in the second stage
    "guidance": 1.0,
    "negative_prompt": "",
    "renewal": 0.0,
    "ancestral": 0.0,
    "sigmas": SECOND_STAGE,
    "references": (),
}
ACTIVATIONS = 6  # arrays of the upsampler's width at full size that live at once, about


class SecondNetwork(NamedTuple):
    """The network of the second stage, where it is not that of the first: a weights folder and its configs."""

    folder: Path
    config: PipelineConfig


class TwoStagePlan(NamedTuple):
    """A request for two stages that was checked against weights.

    Attributes:
        low: The plan of the first stage.
        high: The plan of the second one. Its size is the request's.
        second: The second stage's own network; None uses the first stage's.
    """

    low: ClipPlan
    high: ClipPlan
    second: SecondNetwork | None

    @property
    def steps(self) -> int:
        """Denoising steps of both stages."""
        return len(self.low.sigmas) + len(self.high.sigmas) - 2


def plan_two_stage(weights: checks.Weights, request: ClipRequest, second: AnyPath | None = None) -> TwoStagePlan:
    """Check a request without loading any weights. Its height and width are those of the second stage.

    Args:
        weights: Weights with an upsampler of the picture.
        request: The request. Its size is the final one; keyframes, and LoRAs without references, are for both stages.
            All else is the first stage's.
        second: Weights folder of the second stage's own network.

    Raises:
        ValueError: In one line, whatever is wrong with it.
    """
    config, upsampler = checks.with_upsampler(weights)
    size = _final_size(config, upsampler, request)
    height, width = (side * upsampler.ratio[1] // upsampler.ratio[0] for side in size)
    grid, pixels = config.grid(*size), PREFIX.frames_for(request.seconds)
    guides = plan_guides(config, grid, pixels, request.keyframes, (), ())
    shrunk = tuple(dataclasses.replace(each, fit=each.fit or "stretch") for each in request.keyframes)
    smaller = dataclasses.replace(request, height=height, width=width, keyframes=shrunk)
    low = plan_clip(weights, smaller)._replace(config=config)
    refining = dataclasses.replace(request, height=size[0], width=size[1], **REFINING)
    high = low._replace(
        request=refining,
        static=low.static._replace(guidance=refining.strengths),
        grid=grid,
        sigmas=refining.levels,
        shares=None,
        loras=NO_LORAS if request.references else low.loras,
        guides=guides,
    )
    is_loaded = isinstance(weights, Pipeline)
    needed = high.working | {"upsampler": _upsampler_bytes(high, upsampler)}
    if is_loaded and second is not None:  # beside the first one, which is somebody else's
        needed["second network"] = budget.count_bytes(abstract_pipeline(config, request.dtype).transformer)
    budget.check_memory(config, request.dtype, is_loaded, needed)
    return TwoStagePlan(low, high, None if second is None else _read_second(second, config))


def _final_size(config: PipelineConfig, upsampler: UpsamplerConfig, request: ClipRequest) -> tuple[int, int]:
    """Return height and width of the second stage, by default the trained ones times the upsampler's scale."""
    num, den = upsampler.ratio
    require(num > den, "two-stage", upsampler.scale, "the upsampler's scale must be above 1")
    cell = config.video_vae.spatial_compression * num
    rule = f"must be a positive multiple of {cell} pixels in two stages"
    sides = []
    for name, given, own in zip(("height", "width"), (request.height, request.width), config.resolution, strict=True):
        side = own * num // den if given is None else given
        require(side > 0 and side % cell == 0, name, side, rule)
        require(side <= checks.LONGEST_SIDE, name, side, f"must be at most {checks.LONGEST_SIDE} pixels")
        sides.append(side)
    return sides[0], sides[1]


def _upsampler_bytes(high: ClipPlan, upsampler: UpsamplerConfig) -> int:
    values = ACTIVATIONS * len(high.prompts) * high.tokens[0] * upsampler.width
    return values * jnp.dtype(high.static.dtype).itemsize


def _read_second(second: AnyPath, config: PipelineConfig) -> SecondNetwork:
    """Check the weights folder of the second stage's network."""
    folder = find_weights(second)
    found = read_pipeline_config(folder)
    checks.refuse_student(found)
    for field in dataclasses.fields(config.model):
        own, other = (getattr(each.model, field.name) for each in (found, config))
        rule = f"{config.name!r} has {other!r}, and both stages must be of one kind of network"
        require(own == other, f"{folder}: transformer.{field.name}", own, rule)
    check_components(folder, found, (TRANSFORMER,))
    return SecondNetwork(folder, found)


@partial(jax.jit, static_argnames=("grid", "dtype"))
def begin_second(
    codecs: Codecs,
    low: Streams,
    noise: Streams,
    sigma: Float[Array, ""],
    *,
    grid: tuple[int, int],
    dtype: DTypeLike,
) -> Streams:
    """Upsample the clean latents of the first stage, and add the second stage's first noise to both streams.

    Args:
        codecs: Codecs with an upsampler.
        low: Latents of the first stage, [B, T, C] and [B, A, C].
        noise: Noise at the second stage's size.
        sigma: The level of that noise.
        grid: Latent rows and columns of the first stage.
        dtype: Type to upsample in.
    """
    frames = to_frames(low.video, grid).astype(dtype)
    larger = upsample_clip(*codecs.upsampling, codecs.video, frames).astype(jnp.float32)
    clean = Streams(video=larger.reshape(noise.video.shape), audio=low.audio)
    return jax.tree.map(partial(add_noise, sigma=sigma), clean, noise)


def refine(
    pipeline: Pipeline, plan: TwoStagePlan, low: Streams, on_step: Callable[[int], None] = lambda step: None
) -> Streams:
    """Run the second stage; returns the latents of the clips.

    Args:
        pipeline: The second stage's network, with the codecs.
        plan: The plan.
        low: Latents of the first stage.
        on_step: Called with the number of steps done, those of the first stage included.
    """
    high, done = plan.high, len(plan.low.sigmas) - 1
    key = jax.random.fold_in(jax.random.key(high.request.seed), SECOND_NOISE)
    noise = clip_noise(key, config=high.config.model, rows=len(high.prompts), tokens=high.tokens)
    sigma = jnp.float32(high.sigmas[0])
    start = begin_second(pipeline.codecs, low, noise, sigma, grid=plan.low.grid, dtype=high.static.dtype)
    made = sample_latents(pipeline, high, lambda step: on_step(done + step), start)
    return made if plan.second is None else made._replace(audio=low.audio)


def second_pipeline(pipeline: Pipeline, plan: TwoStagePlan, *, is_own: bool) -> Pipeline:
    """Return the pipeline of the second stage; its own network is loaded here.

    Args:
        pipeline: The pipeline of the first stage.
        plan: The plan.
        is_own: Whether nobody else uses that pipeline: the memory of its network is freed before another is loaded.

    Raises:
        ValueError: As `load_pipeline`.
    """
    if plan.second is None:
        return pipeline
    if is_own:
        for leaf in jax.tree.leaves(pipeline.transformer):
            leaf.delete()
    parts = load_components(*plan.second, plan.high.static.dtype, (TRANSFORMER,))
    return dataclasses.replace(pipeline, transformer=parts[TRANSFORMER])


def encode_two_stage_on_disk(weights: checks.Weights, plan: TwoStagePlan) -> TwoStagePlan:
    """Encode a plan's prompts as `plan.encode_plan_on_disk` does, once for both stages."""
    low = encode_plan_on_disk(weights, plan.low)
    return plan._replace(low=low, high=plan.high._replace(contexts=low.contexts))


class TwoStageOptions(ClipOptions, total=False):
    """The fields of `ClipRequest` that `sample_two_stage` takes by name."""

    seconds: int | float
    steps: int
    guidance: GuidanceConfig | int | float
    seed: int


def sample_two_stage(
    weights: checks.Weights,
    prompts: Sequence[str],
    second_weights: AnyPath | None = None,
    **options: Unpack[TwoStageOptions],
) -> list[Chunk]:
    """Sample one clip per prompt in two stages, all in one batch.

    Args:
        weights: A weights folder with an upsampler of the picture, or a pipeline that was loaded with it.
        prompts: What to show, one clip each; at least one is required.
        second_weights: Weights folder of the second stage's own network.
        **options: The other fields of `ClipRequest`, which describes them; a clip has 5 seconds if nothing else is
            said. Height and width are the final ones; keyframes, and LoRAs without references, are for both stages. All
            else is the first stage's.

    Returns:
        One chunk per prompt, with its whole clip; its index is that of the prompt.

    Raises:
        ValueError: In one line and before any work, whatever is wrong with the request.
    """
    options.setdefault("seconds", SECONDS)
    request = ClipRequest(prompts=prompts, **options)
    plan = encode_two_stage_on_disk(weights, plan_two_stage(weights, request, second_weights))
    pipeline = checks.load(weights, plan.low.config, request.dtype)
    low = sample_latents(pipeline, plan.low)
    pipeline = second_pipeline(pipeline, plan, is_own=not isinstance(weights, Pipeline))
    return decode_clips(pipeline, plan.high, refine(pipeline, plan, low))
