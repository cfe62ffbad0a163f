"""A guided trajectory of a recorded case: each pass of its recorded steps, their sum, and the clip at every step."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.config import CrossTimestep, ModelConfig
from omniforcing_jax.guidance import (
    GuidanceConfig,
    Pass,
    Stg,
    StreamGuidance,
    euler_trajectory,
    guided_x0,
    predict_passes,
)
from omniforcing_jax.model.dual_stream import Perturbation
from omniforcing_jax.model.positions import Rotaries, clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.model.whole_clip import predict_x0
from omniforcing_jax.schedule import snap
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

from .forward import QUICK
from .recorded_case import STREAMS, RecordedCase, as_latents, as_tokens

PARTS = {Pass.PROMPT: "cond", Pass.NEGATIVE: "uncond", Pass.PERTURBED: "perturbed", Pass.ISOLATED: "isolated"}


def run_guided(case: RecordedCase, _: str, config: ModelConfig, params: Transformer) -> dict[str, np.ndarray]:
    """Follow a guided trajectory. Returns everything that was recorded of it, by name.

    Raises:
        ValueError: An input is missing; names it.
    """
    noise_v, noise_a = case["in.noise_video"], case["in.noise_audio"]
    clip = clip_block(noise_v.shape[1], noise_a.shape[1])
    tables = rotaries(config, make_positions(config, clip, (noise_v.shape[-2], noise_v.shape[-1])))
    prompt, negative = (
        TextContexts(*(jnp.asarray(case[f"in.{stream}_context{ending}"]) for stream in STREAMS), mask=None)
        for ending in ("", "_neg")
    )
    follow, run_passes = _programs(config, _guidance(case, config))
    sigmas = jnp.asarray(case["in.sigmas"])
    noise = Streams(jnp.asarray(as_tokens(noise_v)), jnp.asarray(noise_a))
    video, audio = follow(params, tables, noise, sigmas, prompt, negative)
    result: dict[str, np.ndarray] = {}
    for step in sorted({int(found[1]) for name in case.tensors if (found := re.match(r"out\.step(\d+)\.", name))}):
        passes = run_passes(params, tables, Streams(video[step], audio[step]), sigmas[step], prompt, negative)
        for part, streams in passes.items():
            for stream, value in zip(STREAMS, streams, strict=True):
                name = f"out.step{step}.{part}.{stream}_x0"
                result[name] = as_latents(np.asarray(value), noise_v if stream == "video" else noise_a)
    kept, levels = snap(case.setting("denoising_step_list"), case["in.sigmas"])
    result |= {"out.subsample_indices": np.array(kept), "out.subsample_sigmas": np.array(levels)}
    for name, rows in (("out.{}_trajectory", slice(None)), ("out.ode_{}", np.array(kept))):
        entries = np.stack([as_latents(entry, noise_v) for entry in np.asarray(video)[rows]], axis=1)
        result |= {name.format("video"): entries, name.format("audio"): np.swapaxes(np.asarray(audio)[rows], 0, 1)}
    return result


def _guidance(case: RecordedCase, config: ModelConfig) -> GuidanceConfig:
    """Read the guidance strengths.

    A perturbed layer drops its residual in the code of older releases and passes values through in newer ones. The same
    release changed whose sigma drives the crossings, so the config tells which one recorded the case.
    """
    strengths = case.setting("guidance")
    video, audio = (
        StreamGuidance(
            cfg=strengths[f"cfg_{stream}"],
            stg=strengths["stg"],
            modality=strengths["modality"],
            rescale=strengths["rescale"],
        )
        for stream in STREAMS
    )
    return GuidanceConfig(
        video=video,
        audio=audio,
        stg_layers=tuple(strengths["stg_blocks"]),
        stg=Stg.VALUES if config.cross_timestep is CrossTimestep.CROSS else Stg.DROP,
        rescale_over_batch=True,
    )


def _programs(config: ModelConfig, guidance: GuidanceConfig) -> tuple[Callable[..., Streams], Callable[..., Any]]:
    """Compile the whole trajectory, and the passes of one step."""

    def network(params: Transformer, tables: Rotaries) -> Callable[..., Streams]:
        def ask(latents: Streams, sigma: jax.Array, contexts: TextContexts, perturbation: Perturbation) -> Streams:
            return predict_x0(params, config, latents, sigma, contexts, tables, perturbation)

        return ask

    def follow(
        params: Transformer, tables: Rotaries, noise: Streams, sigmas: jax.Array, prompt: Any, negative: Any
    ) -> Streams:
        def step(latents: Streams, sigma: jax.Array) -> Streams:
            return guided_x0(network(params, tables), latents, sigma, prompt, negative, guidance, config.layers)

        return euler_trajectory(step, noise, sigmas)

    def run_passes(
        params: Transformer, tables: Rotaries, latents: Streams, sigma: jax.Array, prompt: Any, negative: Any
    ) -> dict[str, Any]:
        call = (network(params, tables), latents, sigma, prompt, negative, guidance, config.layers)
        passes = {PARTS[which]: streams for which, streams in predict_passes(*call).items()}
        return passes | {"guided": guided_x0(*call)}

    return jax.jit(follow, compiler_options=QUICK), jax.jit(run_passes, compiler_options=QUICK)
