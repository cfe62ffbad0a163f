"""One forward of a recorded case: a bidirectional teacher, or a student under its masks."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.layout import Block
from omniforcing_jax.model.cameras import Shots, cameras_of_clip, lens_of_intrinsics
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import Transformer, predict, text_kv
from omniforcing_jax.model.view import Sigmas, View, bidirectional, hold_scalars, masked
from omniforcing_jax.nn.camera import Cameras
from omniforcing_jax.schedule import to_x0
from omniforcing_jax.streams import Streams

from .recorded_case import STREAMS, RecordedCase, as_latents, as_tokens

BY_BLOCK = "by block"  # in the words of a variant with a noise level per block
PARTIAL = "partial"  # the variant whose clip ends within a block
QUICK = {"xla_backend_optimization_level": 0}  # halves the time to compile programs that run once or twice
WINDOW = re.compile(r"window of (\d+) past block\(s\), sink block 0 kept: (True|False)")


def run_forward(case: RecordedCase, variant: str, config: ModelConfig, params: Transformer) -> dict[str, np.ndarray]:
    """Run one variant. Returns velocities and clean estimates, by their recorded names."""
    words = case.setting("variants")[variant]
    blocks = _blocks(case, variant)
    frames, audio_frames = case.setting("frames"), case.setting("audio_frames")
    video, audio = case["in.video_latent"], case[f"{_inputs(variant)}.audio_latent"]
    if variant == PARTIAL:
        frames, audio_frames = blocks[-1].video_end, blocks[-1].audio_end
        video = video[:, :frames]
    tokens = as_tokens(video)
    positions = make_positions(
        config, clip_block(frames, audio_frames), tuple(case.setting("grid")), cameras=_cameras(case, config, words)
    )
    tables = rotaries(config, positions)
    shown = words.get("text_mask", True) if isinstance(words, dict) else case.settings.get("text_mask", False)
    mask = jnp.asarray(case["in.text_mask"], jnp.int32) if shown else None
    if isinstance(words, dict):
        levels = _hold_scalars(_teacher_sigmas(case, str(words.get("timesteps", ""))), words)
        sigmas = _spread(levels, tokens.shape[1], audio.shape[1])
        is_masked = BY_BLOCK in str(words.get("timesteps", ""))
        view = masked(config, tables, sigmas, blocks) if is_masked else bidirectional(config, tables, sigmas)
    else:
        sigmas = _spread(_student_sigmas(case, variant), tokens.shape[1], audio.shape[1])
        window, is_pinned = _window(case, variant)
        view = masked(config, tables, sigmas, blocks, window=window, pinned=int(is_pinned))
        view = bidirectional(config, tables, sigmas) if variant == "no_mask" else view
    contexts = (jnp.asarray(case["in.video_context"]), jnp.asarray(case["in.audio_context"]))
    noisy = Streams(jnp.asarray(tokens), jnp.asarray(audio))
    scalars = (sigmas.scalar_video, sigmas.scalar_audio)
    velocities = _forward(params, config, noisy, view, contexts, mask, scalars)
    result = {}
    for stream, x, levels, velocity in (
        ("video", tokens, sigmas.video, velocities[0]),
        ("audio", audio, sigmas.audio, velocities[1]),
    ):
        like = video if stream == "video" else audio
        x0 = to_x0(jnp.asarray(x), velocity, jnp.broadcast_to(levels, x.shape[:2]))
        result[f"out.{variant}.{stream}_velocity"] = as_latents(np.asarray(velocity), like)
        result[f"out.{variant}.{stream}_x0"] = as_latents(np.asarray(x0), like)
    return result


@functools.partial(jax.jit, static_argnames=("config",), compiler_options=QUICK)
def _forward(
    params: Transformer,
    config: ModelConfig,
    noisy: Streams,
    view: View,
    contexts: tuple[jax.Array, jax.Array],
    mask: jax.Array | None,
    scalars: tuple[jax.Array | None, jax.Array | None],
) -> Streams:
    """Run one forward, with the text that it reads; text AdaLN takes the scalar level of each stream."""
    text = text_kv(params, *contexts, mask, sigma=scalars[0])
    if config.text_needs_sigma:
        other = text_kv(params, *contexts, mask, sigma=scalars[1])
        text = dataclasses.replace(text, kv=Streams(text.kv.video, other.kv.audio))
    return predict(params, config, noisy, view, text).velocity


def _window(case: RecordedCase, variant: str) -> tuple[int | None, bool]:
    """Read a variant's window from its description: blocks that a block sees, and whether block 0 is pinned.

    Without a description there is no window: all earlier blocks are seen.
    """
    found = WINDOW.search(case.meanings.get(f"out.{variant}.video_velocity", ""))
    return (None, False) if found is None else (int(found[1]) + 1, found[2] == "True")


def _teacher_sigmas(case: RecordedCase, words: str) -> Sigmas:
    """Read a variant's noise levels from its description: per token, one per stream, or one for both."""
    scalar_v, scalar_a = case["in.sigma_video"], case["in.sigma_audio"]
    if "both" in words:
        scalar_a = scalar_v
    levels = [scalar_v[:, None], scalar_a[:, None]]
    if "token" in words:
        levels = [case[f"in.token_sigma_{stream}"] for stream in STREAMS]
        levels = [each[..., 0] if each.ndim == 3 else each for each in levels]
    if BY_BLOCK in words:
        blocks = np.array(case.setting("blocks"))
        counts = blocks[:, 1] - blocks[:, 0], blocks[:, 3] - blocks[:, 2]
        levels = [np.repeat(case["in.block_sigma"], each, axis=1) for each in counts]
    return Sigmas(*(jnp.asarray(x) for x in (*levels, scalar_v, scalar_a)))


def _hold_scalars(sigmas: Sigmas, words: Mapping[str, Any]) -> Sigmas:
    """Hold the scalar levels at 1 where a variant's description says so."""
    if words.get("scalar_sigmas") != "1":
        return sigmas
    return hold_scalars(sigmas, 1.0)


def _cameras(case: RecordedCase, config: ModelConfig, words: Any) -> Cameras | None:
    """Read the cameras of a variant that has them."""
    if not isinstance(words, dict) or not words.get("camera"):
        return None
    sides = [side * config.spatial_compression for side in case.setting("grid")]
    return cameras_of_clip(Shots(case["in.viewmats"], lens_of_intrinsics(case["in.Ks"].astype(np.float64), *sides)))


def _student_sigmas(case: RecordedCase, variant: str) -> Sigmas:
    if variant == "scalar":
        sigma = jnp.asarray(case["in.scalar_sigma"])
        return Sigmas(sigma[:, None], sigma[:, None], sigma, sigma)
    return Sigmas(*(jnp.asarray(case[f"{_inputs(variant)}.{stream}_sigma"]) for stream in STREAMS))


def _inputs(variant: str) -> str:
    """Return the first part of the names of a variant's inputs."""
    return f"in.{PARTIAL}" if variant == PARTIAL else "in"


def _blocks(case: RecordedCase, variant: str) -> tuple[Block, ...]:
    """Read how a student's clip is cut into blocks; a teacher's is not."""
    recorded = case.settings.get("partial_blocks" if variant == PARTIAL else "blocks", ())
    return tuple(Block(*block) for block in recorded)


def _spread(sigmas: Sigmas, tokens: int, audio_frames: int) -> Sigmas:
    """Repeat levels for every token, so that variants with fewer levels use the same compiled program."""
    video, audio = (
        jnp.repeat(levels, count // levels.shape[1], axis=1)
        for levels, count in ((sigmas.video, tokens), (sigmas.audio, audio_frames))
    )
    return Sigmas(video, audio, sigmas.scalar_video, sigmas.scalar_audio)
