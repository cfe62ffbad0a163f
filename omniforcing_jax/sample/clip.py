"""Clips from a bidirectional teacher: guided steps over the whole clip, then one decode.

This is no stream: nothing can be shown before the last step.

Source: ltx-core@1.0.0:components/guiders.py, ltx-core@1.0.0:components/diffusion_steps.py.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, DTypeLike, Key

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.guidance import GuidanceConfig, guided_x0
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Positions, append_frames, clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.model.whole_clip import predict_x0
from omniforcing_jax.parallel.spec import ArrayLeaf
from omniforcing_jax.pipeline import checks, text_source
from omniforcing_jax.pipeline.loras import GivenLoras, with_loras
from omniforcing_jax.pipeline.pipeline import Pipeline
from omniforcing_jax.pipeline.shipped import TEACHER
from omniforcing_jax.sample.guide import Guide, begin_guided, choose_given, cut_appended, hold_given, video_levels
from omniforcing_jax.sample.keyframes import Keyframe, Reference, encode_guides
from omniforcing_jax.sample.plan import ClipPlan, ClipStaticConfig, encode_plan_on_disk, plan_clip
from omniforcing_jax.sample.request import GUIDANCE, SECONDS, STEPS, ClipRequest
from omniforcing_jax.schedule import euler_step, renewing_step
from omniforcing_jax.stream.camera.path import clip_cameras
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.decode import decode_clip
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts

LATER_NOISE = 2**31 - 1  # folded into the seed's key; larger than the index of any clip


@struct.dataclass
class SamplingStep:
    """One step from a noise level to the next.

    Attributes:
        sigmas: The two levels, float32 [2].
        fresh: Fresh noise, `Streams` of [B, T, C] and [B, A, C]; None for Euler's step.
        share: Share of the carried noise that fresh noise replaces, float32 [].
    """

    sigmas: ArrayLeaf
    fresh: Streams | None
    share: ArrayLeaf


@struct.dataclass
class ClipText:
    """Text contexts of clips: of their prompts, and of the negative prompt if guidance needs it."""

    prompt: TextContexts
    negative: TextContexts | None


@partial(jax.jit, static_argnames="static", donate_argnames="latents")
def clip_step(
    params: Transformer,
    latents: Streams,
    step: SamplingStep,
    text: ClipText,
    positions: Positions,
    guide: Guide | None = None,
    *,
    static: ClipStaticConfig,
) -> Streams:
    """Take one guided step of whole clips, of which a guide holds some tokens. The latents are donated."""
    (config, guidance, dtype), sigma, next_sigma = static, step.sigmas[0], step.sigmas[1]

    def ask(noisy: Any, levels: Array, context: TextContexts, perturbation: Perturbation) -> Any:
        rotations, options = rotaries(config, positions), {"dtype": dtype}
        if guide is not None:
            rotations = append_frames(config, rotations, guide.appended) if guide.appended else rotations
            options["video_sigma"] = video_levels(guide, levels)
        return predict_x0(params, config, noisy, levels, context, rotations, perturbation, **options)

    x0 = Streams(*guided_x0(ask, latents, sigma, text.prompt, text.negative, guidance, config.layers))
    x0 = x0 if guide is None else x0._replace(video=hold_given(guide, x0.video))
    stepped = jax.tree.map(lambda x, clean: euler_step(x, clean, sigma, next_sigma), latents, x0)
    if step.fresh is None:
        return stepped

    step_of = partial(renewing_step, share=step.share, sigma=sigma, sigma_next=next_sigma)
    renewed = jax.tree.map(step_of, latents, x0, step.fresh)
    return renewed if guide is None else renewed._replace(video=choose_given(guide, stepped.video, renewed.video))


@partial(jax.jit, static_argnames=("config", "rows", "tokens"))
def clip_noise(key: Key[Array, ""], *, config: ModelConfig, rows: int, tokens: tuple[int, int]) -> Streams:
    """Draw the noise that clips start from. Clip i depends only on the key and on i."""

    def draw(i: Array) -> Streams:
        video, audio = jax.random.split(jax.random.fold_in(key, i))
        return Streams(
            video=jax.random.normal(video, (tokens[0], config.video.latent_channels)),
            audio=jax.random.normal(audio, (tokens[1], config.audio.latent_channels)),
        )

    return jax.vmap(draw)(jnp.arange(rows))


class ClipOptions(TypedDict, total=False):
    """The fields of `ClipRequest` that `sample_clip` takes by name only."""

    height: int | None
    width: int | None
    dtype: DTypeLike
    contexts: text_source.TextSource
    negative_prompt: str
    negative_contexts: text_source.TextSource
    renewal: int | float
    ancestral: int | float
    sigmas: Sequence[float] | None
    camera: str | None
    loras: GivenLoras
    keyframes: Sequence[Keyframe]
    references: Sequence[Reference]


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
            negative_prompt, negative_contexts, renewal, ancestral, sigmas, camera, loras, keyframes,
            references.

    Returns:
        One chunk per prompt, with its whole clip; its index is that of the prompt.

    Raises:
        ValueError: In one line and before any work, whatever is wrong with the request.
    """
    weights = TEACHER if weights is None else weights
    request = ClipRequest(prompts=prompts, seconds=seconds, steps=steps, guidance=guidance, seed=seed, **options)
    plan = encode_plan_on_disk(weights, plan_clip(weights, request))
    return sample_planned(checks.load(weights, plan.config, request.dtype), plan)


def sample_planned(
    pipeline: Pipeline,
    plan: ClipPlan,
    on_step: Callable[[int], None] = lambda step: None,
    start: Streams | None = None,
) -> list[Chunk]:
    """Make the clips of a checked request; arguments and errors as `sample_latents`."""
    return decode_clips(pipeline, plan, sample_latents(pipeline, plan, on_step, start))


def sample_latents(
    pipeline: Pipeline,
    plan: ClipPlan,
    on_step: Callable[[int], None] = lambda step: None,
    start: Streams | None = None,
) -> Streams:
    """Make the latents of the clips of a checked request, [B, T, C] and [B, A, C].

    Args:
        pipeline: The teacher.
        plan: The plan that `plan_clip` made of the request.
        on_step: Called with the number of steps done, after each step.
        start: Latents at the first of the plan's sigmas, float32 [B, T, C] and [B, A, C], instead of noise. They are
            donated.

    Raises:
        ValueError: If `start` has not the shape of the clips' noise.
    """
    key = jax.random.key(plan.request.seed)
    guide = None if not plan.guides else encode_guides(pipeline, plan.guides, plan.tokens[0], plan.static.dtype)
    tokens = (plan.tokens[0] if guide is None else guide.clean.shape[1], plan.tokens[1])
    draw = partial(clip_noise, config=plan.config.model, rows=len(plan.prompts), tokens=tokens)
    if start is not None:
        _check_start(start, jax.eval_shape(partial(draw, tokens=plan.tokens), key))
    pipeline = with_loras(pipeline, plan.loras, plan.static.dtype)
    text = _encode_text(pipeline, plan)
    camera, clip = plan.config.model.camera, clip_block(plan.frames, plan.tokens[1])
    cameras = None if camera is None else clip_cameras(plan.request.camera, camera, plan.grid, plan.frames)
    positions = make_positions(plan.config.model, clip, plan.grid, cameras=cameras)
    latents = draw(key) if start is None or guide is not None else start
    if guide is not None:
        latents = begin_guided(guide, latents, start, plan.sigmas[0])
    for done, step in enumerate(_list_steps(plan, draw, jax.random.fold_in(key, LATER_NOISE)), start=1):
        latents = clip_step(pipeline.transformer, latents, step, text, positions, guide, static=plan.static)
        jax.block_until_ready(latents)
        on_step(done)
    return cut_appended(latents, plan.tokens[0])


def _check_start(start: Streams, noise: Streams) -> None:
    for name in Streams._fields:
        found, expected = getattr(start, name).shape, getattr(noise, name).shape
        require(found == expected, f"start: {name}", found, f"must be {expected}")


def _encode_text(pipeline: Pipeline, plan: ClipPlan) -> ClipText:
    prompt, negative = text_source.encode_text(pipeline, plan.prompts, plan.contexts), None
    if plan.needs_negative:
        negative = text_source.encode_text(pipeline, plan.negative_prompts, plan.negative_contexts)
    return ClipText(prompt=prompt, negative=negative)


def _list_steps(
    plan: ClipPlan, draw: Callable[[Key[Array, ""]], Streams], key: Key[Array, ""]
) -> Iterator[SamplingStep]:
    """List the steps of a plan; the fresh noise of a step is drawn when its turn comes."""
    for step, sigmas in enumerate(itertools.pairwise(plan.sigmas)):
        fresh, share = None, 0.0
        if plan.shares is not None:
            fresh, share = draw(jax.random.fold_in(key, step)), (*plan.shares, 0.0)[step + 1]
        yield SamplingStep(sigmas=jnp.asarray(sigmas, jnp.float32), fresh=fresh, share=jnp.float32(share))


def decode_clips(pipeline: Pipeline, plan: ClipPlan, latents: Streams) -> list[Chunk]:
    """Decode a plan's clips, [B, T, C] and [B, A, C] at sigma 0; each chunk is a whole clip."""
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
