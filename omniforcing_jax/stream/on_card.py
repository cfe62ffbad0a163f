"""A stream on a card that is not there: memory by part, and the speed to expect from the card's peaks.

Nothing is allocated or compiled. Weights, cache, text keys and carries are counted exactly from shapes, the memory of a
program from its trace (parallel/jaxpr_work.py). **Speeds are expected**: see `Assumptions`.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from omniforcing_jax.model.transformer import list_layers
from omniforcing_jax.nn.quantised import is_quantised
from omniforcing_jax.nn.quantised_kv import QuantisedKV
from omniforcing_jax.parallel.jaxpr_work import Product, peak_bytes, products, trace
from omniforcing_jax.pipeline.budget import count_bytes
from omniforcing_jax.pipeline.cards import Card
from omniforcing_jax.pipeline.pipeline import Pipeline, abstract_pipeline
from omniforcing_jax.rollout import (
    commit_block,
    denoise_block,
    make_cache,
    make_prompt_kv,
    stream_network,
)
from omniforcing_jax.stream.camera.path import standing_positions
from omniforcing_jax.stream.decode import decode_audio, decode_video
from omniforcing_jax.stream.plan import StreamPlan
from omniforcing_jax.stream.prompt_change.history import make_history
from omniforcing_jax.stream.resume import abstract_carries
from omniforcing_jax.text.contexts import TextContexts

RESERVED = 1_000_000_000
"""Bytes that CUDA, its libraries and gaps between arrays take: an assumption."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What an expected speed rests on: one card. Shares are those of the profile of an H200 (docs/gpu.md).

    Attributes:
        products: Share of the peak that products of the layers reach.
        attention: The same for fused attention.
        convolutions: The same for the decoders.
        bandwidth: Share of the bandwidth that is reached outside large products.
        passes: How often a layer reads or writes its hidden states outside products: norms, rotations, gates. Counted
            in the program that was compiled for an H100 (docs/gpu.md).
        eight_bit_passes: More of them, which round to eight bits; counted likewise.
        kernels: Kernels of a layer, of that program.
        launch_s: Seconds that a kernel takes at least; most of sound's kernels take no longer.
    """

    products: float = 0.8
    attention: float = 0.45
    convolutions: float = 0.38
    bandwidth: float = 0.35
    passes: float = 30.0
    eight_bit_passes: float = 19.0
    kernels: float = 82.0
    launch_s: float = 2.8e-6


PERFECT = Assumptions(products=1.0, attention=1.0, convolutions=1.0, bandwidth=1.0, launch_s=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The programs of a late block as traces: nothing after the second block is another program."""

    denoise: ClosedJaxpr
    commit: ClosedJaxpr
    video: ClosedJaxpr
    audio: ClosedJaxpr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a stream holds between two late blocks, as shapes."""

    pipeline: Pipeline
    network: PyTree
    cache: PyTree
    prompt: PyTree
    contexts: TextContexts
    history: PyTree
    carries: tuple[Any, Any]


def stream_parts(plan: StreamPlan, text_tokens: int, has_mask: bool = True) -> Parts:
    """Return the shapes of everything that a planned stream holds.

    Args:
        plan: The plan.
        text_tokens: Tokens of a prompt.
        has_mask: Whether text contexts have a mask.
    """
    static, rows = plan.static, len(plan.request.prompts)
    shapes = abstract_pipeline(plan.config, static.dtype)
    mask: Any = jax.ShapeDtypeStruct((rows, text_tokens), jnp.int32) if has_mask else None
    video, audio = (_floats(rows, text_tokens, width) for width in plan.config.context_widths)
    contexts = TextContexts(video, audio, mask)
    layers = jax.eval_shape(list_layers, shapes.transformer)
    return Parts(
        pipeline=shapes,
        network=jax.eval_shape(partial(stream_network, static=static), layers),
        cache=jax.eval_shape(lambda: make_cache(static, rows, has_list=True)),
        prompt=jax.eval_shape(partial(make_prompt_kv, static=static), layers, *contexts),
        contexts=contexts,
        history=jax.eval_shape(lambda: make_history(static, rows, plan.history)),
        carries=abstract_carries(plan, shapes.codecs, 2 + plan.lookahead),
    )


def trace_programs(plan: StreamPlan, parts: Parts) -> Programs:
    """Trace the programs of a late block over shapes."""
    static, rows, layout = plan.static, len(plan.request.prompts), plan.static.sampler.layout
    positions = standing_positions(static, parts.cache.video, 2 + plan.lookahead)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    shared = (parts.network, parts.cache, parts.prompt, keys)
    tokens = layout.step_v * static.grid[0] * static.grid[1]
    latents = (
        _floats(rows, tokens, static.model.video.latent_channels),
        _floats(rows, layout.step_a, static.model.audio.latent_channels),
    )
    denoised = trace(partial(denoise_block, static=static), *shared, positions)
    made, _ = jax.eval_shape(partial(denoise_block, static=static), *shared, positions)
    render = partial(decode_video, grid=static.grid, dtype=static.dtype, lookahead=plan.lookahead)
    codecs = parts.pipeline.codecs
    return Programs(
        denoise=denoised,
        commit=trace(partial(commit_block, static=static), *shared, made, positions),
        video=trace(render, codecs, latents[0], parts.carries[0]),
        audio=trace(decode_audio, codecs, latents[1], parts.carries[1]),
    )


def memory_by_part(plan: StreamPlan, parts: Parts, programs: Programs) -> dict[str, int]:
    """Count the bytes of a stream on one device, by part."""
    fused = plan.static.dtype != jnp.float32  # cuDNN's attention stores no scores
    peaks = {
        name: peak_bytes(getattr(programs, name).jaxpr, fused_attention=fused)
        for name in ("denoise", "commit", "video", "audio")
    }
    return {
        **weights_by_part(parts.pipeline),
        "cache": count_bytes(parts.cache),
        "modulation of the noise levels": count_bytes(parts.network.table),
        "text keys and values": count_bytes(parts.prompt),
        "text contexts, latents of past blocks": 2 * count_bytes(parts.contexts) + count_bytes(parts.history),
        "decoders' carries": count_bytes(parts.carries),
        "largest network program, before fusion": max(peaks["denoise"], peaks["commit"]),
        "decoders' programs, before fusion": peaks["video"] + peaks["audio"],
        "CUDA and gaps, assumed": RESERVED,
    }


def weights_by_part(pipeline: Pipeline) -> dict[str, int]:
    """Count the bytes of weights by component; a network in eight bits has two entries."""
    sizes = {name: count_bytes(tree) for name, (tree, _) in pipeline.parts.items()}
    narrow = [x for x in jax.tree.leaves(pipeline.transformer, is_leaf=is_quantised) if is_quantised(x)]
    if not narrow:
        return sizes
    assert pipeline.config.model.eight_bits is not None
    kind, eights = pipeline.config.model.eight_bits.kind.value, count_bytes(narrow)
    return {f"transformer, {kind}": eights, "transformer, the rest": sizes.pop("transformer") - eights, **sizes}


def time_by_part(plan: StreamPlan, programs: Programs, card: Card, assumed: Assumptions) -> dict[str, float]:
    """Expect the milliseconds of a late block on a card, by part; nothing overlaps."""
    network = [each for name in ("denoise", "commit") for each in products(getattr(programs, name).jaxpr)]
    decoders = [each for name in ("video", "audio") for each in products(getattr(programs, name).jaxpr)]
    attention = [each for each in network if each.is_batched]
    runs = (plan.static.sampler.steps + 1) * plan.static.model.layers
    layout, model = plan.static.sampler.layout, plan.static.model
    tokens = layout.step_v * plan.static.grid[0] * plan.static.grid[1] * model.video.width
    tokens += layout.step_a * model.audio.width
    passes = assumed.passes + (0.0 if plan.config.model.eight_bits is None else assumed.eight_bit_passes)
    nbytes = passes * len(plan.request.prompts) * tokens * jnp.dtype(plan.static.dtype).itemsize
    seconds = {
        "products of the layers": _seconds(
            (each for each in network if not each.is_batched), card, assumed.products, assumed.bandwidth
        ),
        "attention": sum(x.runs * x.flops for x in attention)
        / (assumed.attention * card.peak(jnp.dtype(plan.static.dtype))),
        "norms, rotations, gates": runs * nbytes / (assumed.bandwidth * card.bandwidth),
        "launches": runs * assumed.kernels * assumed.launch_s,
        "decoders": _seconds(decoders, card, assumed.convolutions, assumed.bandwidth),
    }
    if plan.static.cache is not None:
        passes = plan.static.sampler.steps + 1
        seconds["cache, out of eight bits"] = passes * _widening_bytes(plan) / (assumed.bandwidth * card.bandwidth)
    return {name: 1000 * each for name, each in seconds.items()}


def _seconds(made: Iterable[Product], card: Card, share: float, bandwidth: float) -> float:
    """Sum over products: each takes what its operations take or what its bytes take, whichever is longer."""
    return sum(
        each.runs * max(each.flops / (share * card.peak(each.dtype)), each.nbytes / (bandwidth * card.bandwidth))
        for each in made
    )


def _widening_bytes(plan: StreamPlan) -> int:
    """Count what one pass reads and writes to widen the cache: a copy of each layer's, which its attention reads."""
    cache = jax.eval_shape(lambda: make_cache(plan.static, len(plan.request.prompts), has_list=True))
    nodes = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, QuantisedKV))
    narrow = [x for x in nodes if isinstance(x, QuantisedKV)]
    size = jnp.dtype(plan.static.dtype).itemsize
    return count_bytes(narrow) + sum(size * (x.k.size + x.v.size) for x in narrow)


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
