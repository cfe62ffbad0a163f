"""Temporary memory of stage 3's programs, each by itself, for clips of several lengths; nothing is run.

The first pass rolls the clip out. The scoring pass asks teacher and critic about the whole clip. The second pass
carries their answer back block by block; the replay is what self gradient forcing has in its place. Only scoring and
replay may need more for a longer clip, because they see all of it at once. Bytes are XLA's own count for one compiled
program, without arguments and results. `latents` is what the two passes keep per clip. Networks are chime's, on CPU,
with a ring of four past blocks.

Hardware: two CPU cores, five minutes, all of them compilation.

    python -m experiments.bench.memory --json out/memory.json
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.cli_errors import keep_figures, refusing
from experiments.script import read_flags
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.distill import dmd, self_forcing, self_gradient
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.io import machine
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import keep_projections, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline.presets import CHIME_CLIP, CHIME_STREAM, RELEASED_SIGMAS
from omniforcing_jax.rollout import StaticConfig, make_prompt_kv
from omniforcing_jax.streams import Streams
from omniforcing_jax.text.contexts import TextContexts

WORDS = 16
SAME_BUFFERS: dict[str, Any] = {
    "xla_backend_optimization_level": 0
}  # LLVM comes after the buffers are assigned, and takes longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compile stage 3's programs for clips of several lengths."""

    blocks: tuple[int, ...] = (5, 10, 20)
    """Lengths of the clips, in blocks."""
    ring: int = 4
    """Past blocks that a block may see."""
    batch: int = 1
    """Clips at once."""
    json: Path | None = None
    """JSON file for the figures (default: none)."""


Program = tuple[Callable[..., Any], tuple[Any, ...]]


def programs(
    blocks: int, ring: int, batch: int, student: ModelConfig, teacher: ModelConfig, grid: tuple[int, int]
) -> dict[str, Program]:
    """Build the programs for clips of so many blocks, each with the shapes of its arguments."""
    sampler = SamplerConfig(sigmas=RELEASED_SIGMAS, window=ring + 1, horizon_seconds=ring + 2, context_noise=0.1)
    static = StaticConfig(student, sampler, grid)
    plan, end = self_forcing.plan_rollout(static, blocks, remat=keep_projections), sampler.layout.block(blocks - 1)
    noise = self_forcing.noise_from_keys(jax.random.split(jax.random.key(0), batch), static)
    positions = make_positions(teacher, clip_block(end.video_end, end.audio_end), grid)
    params, judges = (spec.abstract(transformer_spec(model)) for model in (student, teacher))
    widths = [student.caption_channels or stream.width for stream in (student.video, student.audio)]
    contexts: Any = jax.eval_shape(
        lambda: TextContexts(
            *(jnp.zeros((batch, WORDS, width)) for width in widths), mask=jnp.ones((batch, WORDS), int)
        )
    )
    exits = jax.ShapeDtypeStruct((blocks,), jnp.int32)

    def first(params: Any, prompt: Any, exits: jax.Array) -> self_forcing.Rollout:
        return self_forcing.roll_out(params, prompt, self_forcing.Draws(exits, noise), plan, batch)

    def score(clip: Streams, held: Any, critic: Any, contexts: TextContexts, negative: TextContexts) -> Any:
        scorer = dmd.Scorer(teacher=held, critic=critic, network=clip_network(teacher, positions))
        return dmd.score_clip(clip, scorer, contexts, negative, jax.random.key(1), plan.blocks, dmd.DmdConfig())

    def second(params: Any, prompt: Any, made: Any, wanted: Any, exits: jax.Array) -> Any:
        return self_forcing.pull_back(params, prompt, made, wanted, self_forcing.Draws(exits, noise), plan)

    def replay(params: Any, contexts: TextContexts, made: Any, wanted: Any, exits: jax.Array) -> Any:
        draws = self_forcing.Draws(exits, noise)
        _, pull = jax.vjp(lambda params: self_gradient.replay(params, contexts, made, draws, plan), params)
        return pull(wanted.joined())

    prompt = jax.eval_shape(lambda p, c: make_prompt_kv(p, *c, static=static), params, contexts)
    made = jax.eval_shape(first, params, prompt, exits)
    clip = jax.eval_shape(lambda x0: x0.joined(), made.x0)
    return {
        "first_pass": (first, (params, prompt, exits)),
        "scoring": (score, (clip, judges, judges, contexts, contexts)),
        "second_pass": (second, (params, prompt, made, made.x0, exits)),
        "replay": (replay, (params, contexts, made, made.x0, exits)),
    }


def latent_bytes(found: dict[str, Program]) -> int:
    """Return the bytes of what the first pass keeps."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found["second_pass"][1][2]))


def temporary_bytes(program: Program) -> int:
    """Compile a program and return the bytes that it needs beside its arguments and results.

    Raises:
        ValueError: If XLA does not say it on this backend.
    """
    function, arguments = program
    analysis = jax.jit(function).lower(*arguments).compile(dict(SAME_BUFFERS)).memory_analysis()
    if analysis is None:
        raise ValueError(f"{jax.default_backend()}: XLA does not say what a program needs here")
    return analysis.temp_size_in_bytes


def table(figures: dict[int, dict[str, int]]) -> str:
    """Write the bytes as Markdown, in MB, a row per length."""
    names = list(next(iter(figures.values())))
    lines = ["| blocks | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for blocks, row in figures.items():
        lines.append(f"| {blocks} | " + " | ".join(f"{row[name] / 1e6:.2f}" for name in names) + " |")
    return "\n".join(lines)


def grown(figures: dict[int, dict[str, int]], name: str) -> float:
    """Say by what share a program's bytes grow from the least to the most."""
    sizes = [row[name] for row in figures.values()]
    return max(sizes) / min(sizes) - 1


def main(arguments: Arguments) -> None:
    """Print MB per program and length; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing(arguments.json):
        if arguments.ring < 1 or arguments.batch < 1 or min(arguments.blocks, default=0) < 2:
            raise ValueError("--blocks must be 2 or more, --ring and --batch at least 1")
        grid = CHIME_STREAM.grid(*CHIME_STREAM.resolution)
        chosen = (arguments.ring, arguments.batch, CHIME_STREAM.model, CHIME_CLIP.model, grid)
        figures = {}
        for blocks in arguments.blocks:
            found = programs(blocks, *chosen)
            sizes = {name: temporary_bytes(program) for name, program in found.items()}
            figures[blocks] = {"latents": latent_bytes(found), **sizes}
    print(table(figures))
    changes = [f"{name} {grown(figures, name):+.2%}" for name in ("second_pass", "replay", "scoring")]
    print(f"from the least to the most: {', '.join(changes)}")
    keep_figures(arguments.json, figures)


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
