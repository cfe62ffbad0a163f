"""A cached rollout of a recorded case, with its recorded noise: the estimates of each step, the clip, the caches."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from omniforcing_jax import rollout, streams
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.layout import FUSED, PREFIX, PREFIX2
from omniforcing_jax.model.cache import Cache
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.nn.attention import KV

from .forward import QUICK
from .recorded_case import STREAMS, RecordedCase, as_latents, as_tokens

HISTORIES = ("video_self", "audio_self", "a2v", "v2a")

_denoise = jax.jit(rollout.denoise, static_argnames="static", compiler_options=QUICK)
_clean_pass = jax.jit(rollout.clean_pass, static_argnames="static", compiler_options=QUICK)


def run_rollout(case: RecordedCase, run: str, config: ModelConfig, params: Transformer) -> dict[str, np.ndarray]:
    """Roll a clip out with the case's own noise. Returns everything that was recorded of it, by name.

    Raises:
        ValueError: Noise is missing, or the blocks fit no layout; names it.
    """
    static = _static(case, run, config)
    plain = static._replace(sampler=dataclasses.replace(static.sampler, context_noise=0.0))  # all runs share it
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if case.settings.get("text_mask") else None
    prompt = rollout.make_prompt_kv(params, case["in.video_context"], case["in.audio_context"], mask, static=static)
    cache, made, result = rollout.make_cache(static, len(case["in.video_context"])), [], {}
    steps = static.sampler.steps
    for k in range(len(case.setting("blocks"))):
        block = f"{run}.block{k}"
        noise = _read(case, f"{block}.init_noise", *(f"{block}.step{i}.renoise" for i in range(steps - 1)))
        positions = rollout.block_positions(static, k)
        estimates, cache = _denoise(params, cache, prompt, noise, positions, static=plain)
        for i in range(steps):
            result |= _name(case, f"{block}.step{i}.x0", (estimates.video[i], estimates.audio[i]))
        made.append(jax.tree.map(lambda x: x[-1], estimates))
        context = None
        if static.sampler.context_noise:
            context = jax.tree.map(lambda x: x[0], _read(case, f"{block}.ctx_noise"))
        cache = _clean_pass(params, cache, prompt, made[-1], context, positions, static=static)
    clip = [np.concatenate(pieces, axis=1) for pieces in zip(*made, strict=True)]
    return result | _name(case, f"{run}.final", clip) | _caches(case, run, cache, prompt)


def _static(case: RecordedCase, run: str, config: ModelConfig) -> rollout.StaticConfig:
    """Make the static config of a run, whose ring has room for the whole clip."""
    blocks = [tuple(block) for block in case.setting("blocks")]
    fitting = [layout for layout in (PREFIX, PREFIX2, FUSED) if [*map(tuple, layout.blocks(blocks[-1][1]))] == blocks]
    if not fitting:
        raise ValueError(f"{case.name}: blocks={blocks}: must be those of a layout")
    sampler = SamplerConfig(
        layout=fitting[0],
        sigmas=tuple(case.setting("sigmas")),
        horizon_seconds=fitting[0].start_seconds(len(blocks) + 1),
        context_noise=case.setting("runs")[run].get("context_sigma", 0.0),
    )
    rows, columns = case.latents("video").shape[-2:]
    return rollout.StaticConfig(config, sampler, (rows, columns))


def _read(case: RecordedCase, *names: str) -> streams.Streams:
    """Stack recorded noise of both streams as tokens."""
    return streams.Streams(
        video=jnp.stack([as_tokens(case[f"{name}.video"]) for name in names]),
        audio=jnp.stack([case[f"{name}.audio"] for name in names]),
    )


def _name(case: RecordedCase, name: str, streams: Sequence[ArrayLike]) -> dict[str, np.ndarray]:
    """Give both streams their recorded names and shapes."""
    values = dict(zip(STREAMS, map(np.asarray, streams), strict=True))
    return {
        f"{name}.{stream}": as_latents(value, case.tensors.get(f"{name}.{stream}", value))
        for stream, value in values.items()
    }


def _history(cache: Cache, site: str) -> KV:
    """Put the pinned keys and values of a site in front of those of its ring, [L, B, S, N, H]."""
    past = getattr(cache.past, site)
    return jax.tree.map(
        lambda *x: jnp.concatenate(x, axis=2), *(kv for kv in (past.pinned, past.ring) if kv is not None)
    )


def _caches(case: RecordedCase, run: str, cache: Cache, prompt: rollout.PromptKV) -> dict[str, np.ndarray]:
    """Return the keys and values that were recorded, of the histories and of text."""
    result = {}
    for name in case.tensors:
        found = re.fullmatch(rf"{re.escape(run)}\.cache\.layer(\d+)\.(\w+)\.([kv])", name)
        if found is None:
            continue
        layer, site, part = int(found[1]), found[2], found[3]
        kv = _history(cache, site) if site in HISTORIES else getattr(prompt.clean.kv, site.removesuffix("_text"))
        value = np.asarray(getattr(kv, part)[layer])
        if site not in HISTORIES and case.settings.get("text_mask"):  # tokens that may be seen come first
            order = np.argsort(np.asarray(case["in.text_mask"]) == 0, axis=1, kind="stable")
            value = np.take_along_axis(value, np.argsort(order, axis=1)[:, :, None, None], axis=1)
        result[name] = value if site in HISTORIES else value.reshape(*value.shape[:2], -1)
    return result
