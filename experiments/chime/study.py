"""The method's claims, tested on chime: a table of cells, each a JSON file that is not made again.

  sinks     0, 1, 4 or 16 sinks x layout, three seeds: loss and gradient norm over the first 300 steps after the switch
            from the bidirectional to the causal network (noisy context, as the reference trains)
  stages    students of each stage: synchrony, adherence and drift after 5, 20 and 60 s, three seeds
  windows   1, 2, 4 blocks against the full horizon, 20 s streams
  pinned    0 to 3 pinned blocks x 1, 2 or 4 recent blocks in sight, 20 s streams
  steps     1, 2, 3, 4 denoise steps: quality against speed

`windows`, `pinned` and `steps` are of one student; stages are weights folders with names. What a truncating alignment
costs is in alignment.py. study_report.py makes tables and plots of the cells.

Hardware: two CPU cores; sinks 1.5 h, the others minutes each.

    python -m experiments.chime.study --parts windows steps --student omniforcing_jax/assets/chime/student
    python -m experiments.chime.study --parts stages --stages stage2=FOLDER stage3=FOLDER
    python -m experiments.chime.study --parts sinks
    python -m experiments.chime.study --parts --table
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.chime.judge.sources import load
from experiments.chime.world import latents, recipe
from experiments.chime.world.trajectories import straight
from experiments.cli_errors import refusing
from experiments.script import read_flags
from omniforcing_jax.chime import metrics
from omniforcing_jax.chime.film import join_film
from omniforcing_jax.chime.prompts import parse, sample_prompts
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.ode import OdeConfig, Prompts, ode_loss
from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import write_json
from omniforcing_jax.layout import FUSED, PREFIX, Layout, latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import keep_projections, text_kv, transformer_spec
from omniforcing_jax.parallel import spec
from omniforcing_jax.pipeline import presets
from omniforcing_jax.pipeline.checks import student_sampler
from omniforcing_jax.pipeline.shipped import CHIME_WEIGHTS
from omniforcing_jax.schedule import ltx2_schedule, snap
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.text import words
from omniforcing_jax.train import data, gradient, optimiser, state, step
from omniforcing_jax.train.optimiser import OptimiserConfig

Part = Literal["sinks", "stages", "windows", "pinned", "steps"]
SINKS, LAYOUTS, SEEDS = (0, 1, 4, 16), {"prefix": PREFIX, "fused": FUSED}, (0, 1, 2)
LENGTHS, WINDOWS = (5, 20, 60), (1, 2, 4, 0)
PINNED, RECENT = (0, 1, 2, 3), (1, 2, 4)
STEP_LISTS = {1: (1000, 0), 2: (1000, 725, 0), 3: (1000, 750, 500, 0), 4: (1000, 909, 725, 421, 0)}
SWITCH_STEPS, SWITCH_BATCH, SWITCH_SECONDS = 300, 4, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make cells of the study."""

    parts: tuple[Part, ...] = ("steps", "windows")
    """Parts of the study whose cells are made."""
    folder: Path = Path("runs/study")
    """Folder of the cells, one JSON file each."""
    student: Path = CHIME_WEIGHTS / "student"
    """Weights folder whose steps and windows are varied."""
    stages: tuple[str, ...] = ()
    """Students to compare, as NAME=FOLDER."""
    prompts: int = 16
    """Clips per cell; cells of 60 s have a quarter as many."""
    data_file: Path = latents.FILE
    """Clips to train on, from encode_clips."""
    table: bool = False
    """Print a line for every cell that there is."""


Cell = tuple[str, Callable[[], dict[str, Any]]]


def cells(arguments: Arguments) -> Iterator[Cell]:
    """List the cells of the parts asked for.

    Raises:
        ValueError: If a stage is not NAME=FOLDER, a name comes twice or a folder is missing, or if there are no clips.
    """
    check(arguments)
    if "sinks" in arguments.parts:
        for name, layout in LAYOUTS.items():
            for sinks in SINKS:
                for seed in SEEDS:
                    yield f"sinks-{name}-{sinks}-seed{seed}", partial(switch, arguments, layout, sinks, seed)
    if "stages" in arguments.parts:
        for stage in arguments.stages:
            name, _, folder = stage.partition("=")
            for seconds in LENGTHS:
                count = arguments.prompts if seconds < 60 else max(1, arguments.prompts // 4)
                for seed in SEEDS:
                    make = partial(stream_and_judge, Path(folder), {}, count, seconds, seed)
                    yield f"stages-{name}-{seconds}s-seed{seed}", make
    if "windows" in arguments.parts:
        for window in WINDOWS:
            change = {"window": window}
            yield (
                f"windows-{window or 'horizon'}",
                partial(stream_and_judge, arguments.student, change, arguments.prompts, 20, 0),
            )
    if "pinned" in arguments.parts:
        for pinned in PINNED:
            for recent in RECENT:
                change = {"pinned": pinned, "window": 1 + recent}
                make = partial(stream_and_judge, arguments.student, change, arguments.prompts, 20, 0)
                yield f"pinned-{pinned}-recent-{recent}", make
    if "steps" in arguments.parts:
        for count, timesteps in STEP_LISTS.items():
            change = {"sigmas": snap(timesteps, ltx2_schedule(40))[1], "renewal": None}
            yield f"steps-{count}", partial(stream_and_judge, arguments.student, change, arguments.prompts, 5, 0)


def check(arguments: Arguments) -> None:
    """Check what the parts asked for need, before the first cell: a cell takes minutes.

    Raises:
        ValueError: See `cells`.
    """
    if arguments.prompts < 1:
        raise ValueError(f"--prompts {arguments.prompts}: must be at least 1")
    if {"windows", "pinned", "steps"} & set(arguments.parts) and not arguments.student.is_dir():
        raise ValueError(f"--student {arguments.student}: no such folder")
    if "stages" not in arguments.parts:
        return
    if not arguments.stages:
        raise ValueError("--parts stages: needs --stages NAME=FOLDER")
    names = [stage.partition("=")[0] for stage in arguments.stages]
    for stage, name in zip(arguments.stages, names, strict=True):
        _, found, folder = stage.partition("=")
        if not (found and name and folder):
            raise ValueError(f"--stages {stage}: must be NAME=FOLDER")
        if names.count(name) > 1:
            raise ValueError(f"--stages {stage}: there is another {name}")
        if not Path(folder).is_dir():
            raise ValueError(f"--stages {stage}: no such folder")


def stream_and_judge(folder: Path, change: dict[str, Any], count: int, seconds: int, seed: int) -> dict[str, Any]:
    """Stream `count` prompts with a student whose sampler is changed, and judge them; speed is of the streams alone.

    Frames per second of the clock, and per second of all processors' work, which jobs beside it disturb less.
    """
    pipeline = load(folder)
    sampler = dataclasses.replace(student_sampler(pipeline.config), **change)
    pipeline = dataclasses.replace(pipeline, config=dataclasses.replace(pipeline.config, sampler=sampler))
    judged, spent, worked, frames = [], 0.0, 0.0, 0
    for index, prompt in enumerate(sample_prompts(count, seed)):
        begun = time.perf_counter(), time.process_time()
        chunks = list(open_stream(pipeline, prompt=prompt, seconds=seconds, seed=seed + 1000 * index))
        took, work = time.perf_counter() - begun[0], time.process_time() - begun[1]
        film = join_film(chunks)
        judged.append(metrics.perceive(film, parse(prompt)))
        if index:  # the first one compiles
            spent, worked, frames = spent + took, worked + work, frames + len(film.video)
    speed = {
        "frames_per_second": frames / spent if spent else None,
        "frames_per_processor_second": frames / worked if worked else None,
    }
    return {**metrics.judge_clips(judged), "clips": count, **speed}


def switch(arguments: Arguments, layout: Layout, sinks: int, seed: int) -> dict[str, Any]:
    """Train the teacher's weights as a causal network for the first steps; returns loss and gradient norm of each."""
    model = dataclasses.replace(presets.CHIME, sinks=sinks)
    frames = latent_frames(layout.frames_for(SWITCH_SECONDS))
    blocks = layout.blocks(frames)
    positions = make_positions(model, clip_block(frames, blocks[-1].audio_end), recipe.GRID)
    vectors, levels = recipe.word_vectors(), jnp.asarray(snap(STEP_LISTS[4], ltx2_schedule(40))[1], jnp.float32)

    def loss(params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        for_noise, for_levels = jax.random.split(key)
        text = Prompts(prompt=text_kv(params, *words.contexts(vectors, batch["ids"])))
        trajectory = straight(batch, levels, for_noise)
        network = clip_network(model, positions, remat=keep_projections)
        return ode_loss(params, trajectory, text, for_levels, blocks, network, OdeConfig())

    teacher = recipe.read_transformer(CHIME_WEIGHTS / "teacher", presets.CHIME_TEACHER)
    fresh = spec.init(transformer_spec(model), jax.random.key(seed))
    rule = optimiser.optimiser(
        OptimiserConfig(kind="adam", learning_rate=2e-4, steps=SWITCH_STEPS, warmup=0, decay_from=1.0, b2=0.999)
    )
    trainer = state.create(dataclasses.replace(teacher, sinks=fresh.sinks), rule, seed, ema=False)
    update = step.make_step(gradient.of_loss(loss), rule)
    rows = recipe.by_balls(latents.read(arguments.data_file))
    batches = data.batches(data.ArraySource(rows), SWITCH_BATCH, seed)
    lines = []
    for _ in range(SWITCH_STEPS):
        trainer, report = update(trainer, next(batches))
        lines.append([float(report.metrics[name]) for name in ("loss", "video", "audio", "grad_norm")])
    columns = np.asarray(lines)
    return {
        "loss": columns[:, 0].tolist(),
        "grad_norm": columns[:, 3].tolist(),
        "first_grad_norm": float(columns[0, 3]),
        "largest_grad_norm": float(columns[:, 3].max()),
        "loss_last_50": float(columns[-50:, 0].mean()),
        "audio_last_50": float(columns[-50:, 2].mean()),
    }


def table(folder: Path) -> str:
    """Write every cell's scalars as a line of Markdown, in the order of their names."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        figures = {k: v for k, v in json.loads(path.read_text()).items() if isinstance(v, int | float)}
        lines.append(f"| {path.stem} | " + " | ".join(f"{k} {v:.4g}" for k, v in figures.items()) + " |")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Make the cells that are missing, one after the other; bad input is one line on stderr and exit code 2."""
    machine.use_compilation_cache()
    with refusing():
        todo = list(cells(arguments))
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with refusing(arguments.folder / "cell.json"):
        for name, make in todo:
            path = arguments.folder / f"{name}.json"
            if not path.exists():
                write_json(path, make())
                print(f"{path}: made", flush=True)
        if arguments.table:
            print(table(arguments.folder))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
