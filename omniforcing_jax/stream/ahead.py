"""Compile a stream's programs ahead: side by side, while its weights are being loaded.

A stream meets its programs one after the other, those of the first block and then those of a later one. Compiled when
they are met, they would wait for the weights and for each other, and the second chunk for a minute at full size. JAX
keeps a program that was compiled for shapes, and runs it when arrays of these shapes come.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import jax

from omniforcing_jax.model.lora import attach_shapes
from omniforcing_jax.parallel.sharding import mesh_in_use
from omniforcing_jax.pipeline import text_source
from omniforcing_jax.pipeline.pipeline import abstract_pipeline, with_list
from omniforcing_jax.rollout import (
    NO_CONDITIONING,
    StaticConfig,
    StreamNetwork,
    block_positions,
    commit_block,
    denoise_block,
    make_prompt_kv,
    make_table,
)
from omniforcing_jax.stream.decode import decode_audio, flush_audio, lower_video
from omniforcing_jax.stream.plan import StreamPlan
from omniforcing_jax.stream.state import StreamState, start_state
from omniforcing_jax.streams import Streams

log = logging.getLogger(__name__)


class ProgramsAhead:
    """Programs that are being compiled.

    Args:
        plan: The plan of the stream.
        contexts: Text contexts of its prompts; None if the pipeline has the text encoder.
    """

    def __init__(self, plan: StreamPlan, contexts: text_source.TextSource = None) -> None:
        self._stages: list[Future[list[Future[Any]]]] = [Future() for _ in range(1 + _blocks_apart(plan))]
        # One thread lowers, which is Python; the others compile, which is not.
        self._pool = ThreadPoolExecutor(1 + (os.cpu_count() or 1), "compile ahead")
        self._pool.submit(self._compile_all, plan, contexts)

    def wait_for_start(self) -> None:
        """Wait until the programs are ready that run before block 0. One that failed is left to whoever calls it."""
        wait(self._stages[0].result())

    def wait_for_block(self, block: int) -> None:
        """Wait until the programs of a block are ready, likewise."""
        if 1 + block < len(self._stages):
            wait(self._stages[1 + block].result())

    def _compile_all(self, plan: StreamPlan, contexts: text_source.TextSource) -> None:
        try:
            for future, lowered in zip(self._stages, lower_stages(plan, contexts), strict=True):
                future.set_result([self._pool.submit(each.compile) for each in lowered])
        except Exception:
            log.debug("programs are compiled when they are met", exc_info=True)
            for future in self._stages:
                if not future.done():
                    future.set_result([])
        finally:
            self._pool.shutdown(wait=False)


def compile_ahead(plan: StreamPlan, contexts: text_source.TextSource = None) -> ProgramsAhead | None:
    """Begin to compile the programs of a planned stream, unless it has other ones.

    None for a stream on a mesh, whose arrays lie elsewhere, and for one with cameras or with given picture or sound.
    """
    given = plan.conditioning.picture_blocks or plan.conditioning.sound_blocks or plan.static.model.camera
    return None if given or mesh_in_use() is not None else ProgramsAhead(plan, contexts)


def lower_stages(plan: StreamPlan, contexts: text_source.TextSource) -> Iterator[list[jax.stages.Lowered]]:
    """Lower a stream's programs for shapes, as `start_stream` and `ChunkStream` call them.

    Yields first those that run before block 0, then those that each block is the first to run.
    """
    static, request = plan.static, plan.request

    shapes = abstract_pipeline(plan.config, request.dtype)
    listed = jax.eval_shape(partial(with_list, plan.config), shapes.transformer)
    pipeline = dataclasses.replace(shapes, transformer=attach_shapes(listed, plan.loras.factors, static.dtype))
    features = jax.eval_shape(lambda p: text_source.encode_text(p, request.prompts, contexts), pipeline)
    text = make_prompt_kv.lower(pipeline.transformer, *features, static=static)
    table = make_table.lower(pipeline.transformer, static)
    yield [text, table]
    network = StreamNetwork(params=pipeline.transformer, table=table.out_info)
    state = jax.eval_shape(lambda t, f: start_state(static, t, request.seeds, f), text.out_info, features)
    made, picture, sound = Streams(None, None), None, None
    for k in range(_blocks_apart(plan)):
        lowered = []
        if k < 2:
            made, lowered = _lower_network(network, state, static, k)
            lowered.append(decode_audio.lower(pipeline.codecs, made.audio, sound))
            sound = lowered[-1].out_info[1]
        shown, picture = lower_video(
            pipeline.codecs, made.video, picture, grid=static.grid, dtype=static.dtype, lookahead=plan.lookahead
        )
        yield [*lowered, shown, *([flush_audio.lower(pipeline.codecs, sound)] if k == 1 else [])]


def _lower_network(
    network: StreamNetwork, state: StreamState, static: StaticConfig, k: int
) -> tuple[Streams, list[jax.stages.Lowered]]:
    """Lower denoising and commit of a block; also return the shapes of its latents."""
    positions, shared = block_positions(static, k), (network, state.cache, state.prompt, state.keys)
    denoise = denoise_block.lower(*shared, positions, NO_CONDITIONING, static=static)
    latents, _ = denoise.out_info
    return latents, [denoise, commit_block.lower(*shared, latents, positions, static=static)]


def _blocks_apart(plan: StreamPlan) -> int:
    """Count the blocks that have a program of their own: later ones change no shape."""
    return 2 + plan.lookahead
