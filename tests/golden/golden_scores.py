"""Clips and scores of golden g, which case h is scored with too."""

import jax.numpy as jnp
from golden_case import Case
from golden_network import as_tokens

from omniforcing_jax.distill.dmd import DmdConfig
from omniforcing_jax.guidance import GuidanceConfig, Pass, StreamGuidance, combine_passes
from omniforcing_jax.streams import Streams

STREAMS = ("video", "audio")


def read_clip(case: Case, name: str) -> Streams:
    return Streams(jnp.asarray(as_tokens(case[f"{name}.video"])), jnp.asarray(case[f"{name}.audio"]))


def scoring_of(case: Case, **options) -> DmdConfig:
    video, audio = (StreamGuidance(cfg=case.config[f"real_{stream}_guidance_scale"]) for stream in STREAMS)
    return DmdConfig(
        guidance=GuidanceConfig(video=video, audio=audio),
        first=case.config["min_step"],
        last=case.config["max_step"],
        ramp_from=case.config["block_weight_min"],
        **options,
    )


def real_of(case: Case) -> Streams:
    guidance, parts = scoring_of(case).guidance, (read_clip(case, "in.real_cond"), read_clip(case, "in.real_uncond"))
    return Streams(
        *(
            combine_passes({Pass.PROMPT: cond, Pass.NEGATIVE: uncond}, getattr(guidance, stream), False)
            for stream, cond, uncond in zip(STREAMS, *parts, strict=True)
        )
    )
