"""Time of training's two programs beside ltx-core in PyTorch, on the same weights and the same machine.

Our teacher's forward runs against theirs. Our masked student's forward with gradient runs against their forward and
backward, which are bidirectional, because ltx-core has no block-causal form. Both compute in float32 on CPU at a
middling width. Times are medians of alternating repetitions. This needs the development requirements (torch,
ltx-core).

    python -m experiments.bench.train --json out/bench_train.json
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.config import ModelConfig, StreamConfig
from omniforcing_jax.io import machine
from omniforcing_jax.layout import PREFIX, latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions, rotaries
from omniforcing_jax.model.transformer import keep_projections, predict, text_kv, transformer_spec
from omniforcing_jax.model.view import masked, one_sigma
from omniforcing_jax.model.whole_clip import predict_velocity
from omniforcing_jax.parallel import spec
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

CAPTIONS, WORDS, CHANNELS, SIGMA = 256, 64, 128, 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Time training's programs beside ltx-core's."""

    json: Path | None = None
    """JSON file for the figures (default: none)."""
    layers: int = 4
    """Layers of the network."""
    heads: int = 8
    """Attention heads of both streams."""
    video_head: int = 64
    """Channels of a video head."""
    audio_head: int = 32
    """Channels of an audio head."""
    grid: tuple[int, int] = (4, 6)
    """Latent rows and columns."""
    seconds: int = 5
    """Length of the clip, one frame not counted."""
    repeats: int = 5
    """Timed repetitions of each program."""


def main(arguments: Arguments) -> None:
    """Print both ratios, and by how much the forwards differ; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing(arguments.json):
        figures = measure(arguments)
    for name in ("teacher_forward", "student_gradient"):
        row = figures[name]
        print(f"{name}: ours {row['ours_s']:.3f} s, ltx-core {row['ltx_core_s']:.3f} s, ratio {row['ratio']:.2f}")
    print(f"velocities of the forwards differ by at most {figures['largest_difference']:.1e}")
    keep_figures(arguments.json, figures)


def measure(arguments: Arguments) -> dict[str, Any]:
    """Time both programs beside ltx-core's, on the same weights and inputs."""
    model = ModelConfig(
        layers=arguments.layers,
        video=StreamConfig(latent_channels=CHANNELS, heads=arguments.heads, head_size=arguments.video_head),
        audio=StreamConfig(latent_channels=CHANNELS, heads=arguments.heads, head_size=arguments.audio_head),
        caption_channels=CAPTIONS,
    )
    params = spec.init(transformer_spec(model), jax.random.key(0))
    inputs = _draw(arguments)
    forward, with_gradient = _ours(arguments, model, params, inputs)
    their_forward, their_backward = _theirs(arguments, model, params, inputs)
    gap = max(float(np.abs(a - b).max()) for a, b in zip(forward(), their_forward(), strict=True))
    figures: dict[str, Any] = {"config": dataclasses.asdict(arguments) | {"json": None}, "largest_difference": gap}
    pairs = {"teacher_forward": (forward, their_forward), "student_gradient": (with_gradient, their_backward)}
    for name, (mine, other) in pairs.items():
        ours_s, theirs_s = _alternate(mine, other, arguments.repeats)
        figures[name] = {"ours_s": ours_s, "ltx_core_s": theirs_s, "ratio": ours_s / theirs_s}
    return figures


def _draw(arguments: Arguments) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    frames = latent_frames(PREFIX.frames_for(arguments.seconds))
    end = PREFIX.blocks(frames)[-1]
    shapes = [(frames * arguments.grid[0] * arguments.grid[1], CHANNELS), (end.audio_end, CHANNELS)]
    shapes += [(WORDS, CAPTIONS)] * 2
    return tuple(rng.normal(size=(1, *shape)).astype(np.float32) for shape in shapes)


def _ours(arguments: Arguments, model: ModelConfig, params: Any, inputs: tuple[np.ndarray, ...]):
    video, audio, *contexts = map(jnp.asarray, inputs)
    frames = latent_frames(PREFIX.frames_for(arguments.seconds))
    blocks = PREFIX.blocks(frames)
    positions = make_positions(model, clip_block(frames, blocks[-1].audio_end), arguments.grid)
    sigma = jnp.full(1, SIGMA, jnp.float32)

    @jax.jit
    def forward(params):
        rotation = rotaries(model, positions)
        noisy, text = Streams(video, audio), TextContexts(*contexts, mask=None)
        return predict_velocity(params, model, noisy, sigma, text, rotation)

    @jax.jit
    @jax.grad
    def gradient(params):
        view = masked(model, rotaries(model, positions), one_sigma(sigma), blocks)
        text = text_kv(params, *contexts)
        velocity = predict(params, model, Streams(video, audio), view, text, remat=keep_projections).velocity
        return jnp.mean(velocity.video**2) + jnp.mean(velocity.audio**2)

    return (
        lambda: tuple(np.asarray(x) for x in forward(params)),
        lambda: jax.block_until_ready(gradient(params)),
    )


def _theirs(arguments: Arguments, model: ModelConfig, params: Any, inputs: tuple[np.ndarray, ...]):
    import torch
    from ltx_core.guidance.perturbations import BatchedPerturbationConfig, PerturbationConfig
    from ltx_core.model.transformer.modality import Modality

    from experiments.bench.ltx_core_network import bounds_of, build

    network = build(model, params)
    video, audio, *contexts = map(torch.from_numpy, inputs)
    frames = latent_frames(PREFIX.frames_for(arguments.seconds))
    places_v, places_a = bounds_of(frames, arguments.grid, audio.shape[1])

    def modality(latent: Any, positions: Any, context: Any) -> Any:
        levels = torch.full(latent.shape[:2], SIGMA)
        return Modality(
            latent=latent, sigma=levels[:, 0], timesteps=levels, positions=positions, context=context, context_mask=None
        )

    def run():
        nothing_off = BatchedPerturbationConfig([PerturbationConfig([])])
        streams = modality(video, places_v, contexts[0]), modality(audio, places_a, contexts[1])
        return network(*streams, nothing_off)

    def forward() -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            return tuple(x.numpy() for x in run())

    def backward() -> None:
        network.zero_grad()
        velocity_v, velocity_a = run()
        (velocity_v.square().mean() + velocity_a.square().mean()).backward()

    return forward, backward


def _alternate(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Time both by turns after one call each; returns the medians in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(repeats + 1):
        for run, seconds in zip((first, second), times, strict=True):
            begun = time.perf_counter()
            run()
            if round_number:
                seconds.append(time.perf_counter() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
