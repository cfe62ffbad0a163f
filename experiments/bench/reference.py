"""Time of a stream's blocks beside PyTorch: ltx-core's blocks with a growing cache, on the same weights and noise.

Both roll out the same clip in float32 on CPU, block by block, in turns. A block is its denoise steps and its clean
pass; nothing is decoded. Times are medians over the blocks after the second and over the repetitions. This needs the
development requirements (torch, ltx-core).

    python -m experiments.bench.reference --json out/bench_reference.json
    python -m experiments.bench.reference --layers 2 --heads 4 --video-head 16 --audio-head 8
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.config import ModelConfig, SamplerConfig, StreamConfig
from omniforcing_jax.io import machine
from omniforcing_jax.layout import FUSED
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.rollout import (
    StaticConfig,
    block_positions,
    commit_block,
    denoise_block,
    draw_noise,
    make_cache,
    make_prompt_kv,
    stream_network,
)
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require

CAPTIONS, WORDS, CHANNELS = 256, 64, 128
SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
UNTIMED = 2  # blocks at first: both sizes of block are compiled, and buffers are touched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Time a stream's blocks beside PyTorch."""

    json: Path | None = None
    """JSON file for the figures (default: none)."""
    layers: int = 8
    """Layers of the network."""
    heads: int = 8
    """Attention heads of both streams."""
    video_head: int = 64
    """Channels of a video head."""
    audio_head: int = 32
    """Channels of an audio head."""
    grid: tuple[int, int] = (4, 6)
    """Latent rows and columns."""
    blocks: int = 8
    """Blocks of a clip; the first two are not timed."""
    repeats: int = 5
    """Clips of each side that are timed."""


def main(arguments: Arguments) -> None:
    """Print the ratio, and by how much the blocks differ; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing(arguments.json):
        require(arguments.blocks > UNTIMED, "blocks", arguments.blocks, f"must be more than {UNTIMED}")
        figures = measure(arguments)
    print(
        f"a block: ours {1000 * figures['ours_s']:.1f} ms, PyTorch {1000 * figures['pytorch_s']:.1f} ms, "
        f"ratio {figures['ratio']:.2f}; latents differ by at most {figures['largest_difference']:.1e}"
    )
    keep_figures(arguments.json, figures)


def measure(arguments: Arguments) -> dict[str, Any]:
    """Roll out the same clip on both sides, by turns."""
    static = make_static(arguments)
    params = spec.init(transformer_spec(static.model), jax.random.key(0))
    rng = np.random.default_rng(0)
    contexts = Streams(*(rng.normal(size=(1, WORDS, CAPTIONS)).astype(np.float32) for _ in range(2)))
    times: tuple[list[float], list[float]] = ([], [])
    gap = 0.0
    for _ in range(arguments.repeats):
        clips = []
        for rolled, kept in zip((_ours, _theirs), times, strict=True):
            timed = list(rolled(arguments, static, params, contexts))
            kept += [seconds for seconds, _ in timed[UNTIMED:]]
            clips.append([latents for _, latents in timed])
        gap = max(gap, _largest_difference(*clips))
    ours_s, pytorch_s = map(statistics.median, times)
    return {
        "config": dataclasses.asdict(arguments) | {"json": None},
        "ours_s": ours_s,
        "pytorch_s": pytorch_s,
        "ratio": pytorch_s / ours_s,
        "largest_difference": gap,
    }


def make_static(arguments: Arguments) -> StaticConfig:
    """Make a student that sees all of the clip."""

    def sizes(head: int) -> StreamConfig:
        return StreamConfig(latent_channels=CHANNELS, heads=arguments.heads, head_size=head)

    model = ModelConfig(
        layers=arguments.layers,
        video=sizes(arguments.video_head),
        audio=sizes(arguments.audio_head),
        caption_channels=CAPTIONS,
    )
    sampler = SamplerConfig(sigmas=SIGMAS, horizon_seconds=arguments.blocks, layout=FUSED)
    return StaticConfig(model, sampler, arguments.grid)


def _noise(static: StaticConfig, k: int) -> Streams:
    keys, positions = jax.random.split(jax.random.key(1), 1), block_positions(static, k)
    steps = jnp.arange(static.sampler.steps)
    return jax.vmap(lambda step: draw_noise(keys, jnp.int32(k), step, static, positions))(steps)


def _ours(
    arguments: Arguments, static: StaticConfig, params: Any, contexts: Streams
) -> Iterator[tuple[float, Streams]]:
    """Roll out; yields seconds and latents of each block."""
    prompt = make_prompt_kv(params, contexts.video, contexts.audio, None, static=static)
    network = stream_network(params, static)
    cache, keys = make_cache(static, 1), jax.random.split(jax.random.key(1), 1)
    jax.block_until_ready((network, prompt, cache))
    for k in range(arguments.blocks):
        begun = time.perf_counter()
        positions = block_positions(static, k)
        latents, cache = denoise_block(network, cache, prompt, keys, positions, static=static)
        cache = commit_block(network, cache, prompt, keys, latents, positions, static=static)
        jax.block_until_ready(cache)
        yield time.perf_counter() - begun, latents


def _theirs(
    arguments: Arguments, static: StaticConfig, params: Any, contexts: Streams
) -> Iterator[tuple[float, Streams]]:
    from experiments.bench.ltx_core_network import build
    from experiments.bench.torch_stream import Clip, TorchStream

    clip = Clip(layout=static.sampler.layout, grid=static.grid, blocks=arguments.blocks)
    stream = TorchStream(build(static.model, params), contexts, clip, static.sampler.sigmas)
    for k in range(arguments.blocks):
        noise = jax.device_get(_noise(static, k))
        begun = time.perf_counter()
        latents = stream.make_block(k, noise)
        yield time.perf_counter() - begun, latents


def _largest_difference(ours: list[Streams], theirs: list[Streams]) -> float:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
