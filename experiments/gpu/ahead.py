"""All programs of streams compiled at once, a thread each; who runs them later finds them in the cache on disk.

One after the other they take minutes, and most of a machine's processors have nothing to do meanwhile. The network's
programs are compiled for shapes. The decoders run, on random latents.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.gpu.decoders import Decoder, random_decoders
from experiments.gpu.sheet import attempt
from omniforcing_jax import rollout
from omniforcing_jax.cli.bench_stream import BenchSubject


def compile_ahead(subjects: Sequence[BenchSubject]) -> None:
    """Compile what the streams will run; one that cannot be compiled is logged, and left to who runs it."""
    pipeline, plan = subjects[0].pipeline, subjects[0].plan
    decoders = random_decoders(pipeline.config, pipeline.codecs, plan.static.dtype, plan.lookahead)
    work = [each for decoder in reversed(decoders.values()) for each in _decodings(decoder)]  # sound takes longest
    work += [each for subject in subjects for each in _network_programs(subject)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(attempt, each) for each in work]):
            done.result()


def _decodings(decoder: Decoder) -> Iterator[Callable[[], Any]]:
    """Decode block 0 and a later block, whose carry is zeros, so that neither waits for the other."""
    carry = jax.eval_shape(lambda: decoder(0, None)[1])
    yield lambda: jax.block_until_ready(decoder(0, None))
    yield lambda: jax.block_until_ready(decoder(1, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), carry)))


def _network_programs(subject: BenchSubject) -> Iterator[Callable[[], Any]]:
    """Compile denoising and commit of block 0 and of a later block, with arguments as `ChunkStream` passes them."""
    stream, static = subject.open(), subject.plan.static
    network, state = stream.network, stream.state
    cache, prompt, keys = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state.cache, state.prompt, state.keys)
    )
    for k in (0, 1):
        positions = rollout.block_positions(static, k)
        run = partial(rollout.denoise_block, static=static)
        latents, _ = jax.eval_shape(run, network, cache, prompt, keys, positions, rollout.NO_CONDITIONING)
        yield partial(
            _compile, rollout.denoise_block, static, network, cache, prompt, keys, positions, rollout.NO_CONDITIONING
        )
        yield partial(_compile, rollout.commit_block, static, network, cache, prompt, keys, latents, positions)


def _compile(program: Any, static: rollout.StaticConfig, *arguments: Any) -> None:
    program.lower(*arguments, static=static).compile()
