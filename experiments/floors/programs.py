"""The programs of one GPU, lowered for a card that need not be there, and the roles of their arguments.

`block` is a late block of a stream: every denoise step and the clean pass. `denoise` and `commit` are its two parts as
a stream compiles them. The decoders take a late block's latents. The steps of trainings are those of pod/programs.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.floors.categories import CACHE, TEXT, WEIGHTS
from experiments.pod import programs
from experiments.pod.plan import Program
from experiments.pod.programs import DTYPE, Subject, late_block, late_block_inputs, whole
from omniforcing_jax import rollout
from omniforcing_jax.pipeline.pipeline import abstract_pipeline
from omniforcing_jax.stream.decode import decode_audio, decode_video

ROLES = {
    "params": WEIGHTS,  # with the table of the noise levels' modulation
    "codecs": WEIGHTS,
    "cache": CACHE,
    "prompt": TEXT,
    "state.params": WEIGHTS,
    "state.generator.params": WEIGHTS,
    "state.critic.params": WEIGHTS,
    "frozen": WEIGHTS,
}
"""Role of a program's argument, or of a part of it, by how its path begins."""


def lower(program: str, subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    """Lower a program for a mesh of one device."""
    return LOWERED[program](subject, mesh)


def _denoise(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    cache, params, prompt, keys, positions = late_block_inputs(subject, mesh, has_list=True)
    return rollout.denoise_block.lower(params, cache, prompt, keys, positions, static=subject.static)


def _commit(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    cache, params, prompt, keys, positions = late_block_inputs(subject, mesh, has_list=True)
    denoise = partial(rollout.denoise_block, static=subject.static)
    latents = whole(jax.eval_shape(denoise, params, cache, prompt, keys, positions)[0], mesh)
    return rollout.commit_block.lower(params, cache, prompt, keys, latents, positions, static=subject.static)


def _block(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    inputs = late_block_inputs(subject, mesh, has_list=True)
    return jax.jit(late_block(subject.static), donate_argnums=0).lower(*inputs)


def _video_decode(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    layout, grid = subject.sampler.layout, subject.static.grid
    decode = partial(decode_video, grid=grid, dtype=DTYPE)
    channels = subject.preset.model.video.latent_channels
    first, later = (
        _latents(subject, frames * grid[0] * grid[1], channels, mesh) for frames in (layout.first_v, layout.step_v)
    )
    return _decoder(decode, _codecs(subject, mesh), first, later, mesh, donated=2)


def _audio_decode(subject: Subject, mesh: Mesh) -> jax.stages.Lowered:
    layout, channels = subject.sampler.layout, subject.preset.model.audio.latent_channels
    first, later = (_latents(subject, frames, channels, mesh) for frames in (layout.first_a, layout.step_a))
    return _decoder(decode_audio, _codecs(subject, mesh), first, later, mesh, donated=())


def _decoder(
    decode: Callable[..., Any], codecs: PyTree, first: Any, later: Any, mesh: Mesh, *, donated: int | tuple[int, ...]
) -> jax.stages.Lowered:
    """Lower a decoder for a late block, with the carry that the block before left, which a stream donates or not."""

    def decode_block(codecs: PyTree, latents: jax.Array, carry: PyTree) -> Any:
        return decode(codecs, latents, carry)

    carry = whole(jax.eval_shape(decode, codecs, first, None)[1], mesh)
    return jax.jit(decode_block, donate_argnums=donated).lower(codecs, later, carry)


def _codecs(subject: Subject, mesh: Mesh) -> PyTree:
    return whole(abstract_pipeline(subject.preset, DTYPE).codecs, mesh)


def _latents(subject: Subject, tokens: int, channels: int, mesh: Mesh) -> Any:
    return whole(jax.ShapeDtypeStruct((subject.batch, tokens, channels), jnp.float32), mesh)


LOWERED: dict[str, Callable[[Subject, Mesh], jax.stages.Lowered]] = {
    "denoise": _denoise,
    "commit": _commit,
    "block": _block,
    "video_decode": _video_decode,
    "audio_decode": _audio_decode,
    "stage2": partial(programs.lower, Program.STAGE2),
    "stage3": partial(programs.lower, Program.STAGE3),
    "critic": partial(programs.lower, Program.CRITIC),
}
