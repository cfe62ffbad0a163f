"""ODE pairs: the teacher's guided trajectories of all prompts in a contexts store; stage 2 learns from them.

Each process makes whole shards on its own devices and waits for nobody. A rerun goes on where the last one stopped.
Row i is prompt i of the store, the negative one not counted, and begins with the noise of seed i.

Source: arXiv 2603.11647, stage 2; OmniForcing@50a271f:ltx_distillation/ode/generate_ode_pairs.py. The sound's
guidance is that of its read-me.
Deviations: guidance is rescaled by each sample's own standard deviation. A perturbed layer passes its values through,
as ltx-core has it since 1.0, where OmniForcing's copy drops the residual.
Hardware: a teacher in bfloat16 (38 GB for LTX-2) on the devices of a process, four passes as one batch. Not run at
that size yet.
Expect: 8 MB per prompt of 121 frames at 512x768.

    python -m experiments.make_pairs --teacher ltx2 --contexts contexts --negative "" --folder pairs --try 2
    python -m experiments.make_pairs --teacher ltx2 --contexts contexts --negative "" --folder pairs
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import ltx2_recipe
from experiments.cli_errors import refusing
from experiments.ltx2_flags import LAYOUTS, Compute, LayoutName
from experiments.script import read_flags
from omniforcing_jax.distill.clip_network import clip_network
from omniforcing_jax.distill.generator_critic import contexts_of
from omniforcing_jax.distill.trajectory import noise_of_seeds, trajectory_entries
from omniforcing_jax.guidance import LTX2_GUIDANCE, GuidanceConfig
from omniforcing_jax.io import weights
from omniforcing_jax.layout import Layout, latent_frames
from omniforcing_jax.model.positions import clip_block, make_positions
from omniforcing_jax.model.transformer import Transformer
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.schedule import ltx2_schedule, snap
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require
from omniforcing_jax.text.contexts import TextContexts
from omniforcing_jax.train import data
from omniforcing_jax.train.pairs import pairs_header, write_pairs
from omniforcing_jax.train.store import Header, writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How trajectories are made.

    Attributes:
        seconds: Length of the clips, one frame not counted.
        steps: Euler steps of the teacher.
        student_steps: The student's levels in thousandths, snapped to those of the teacher.
        guidance: Of the teacher.
    """

    seconds: int = 5
    steps: int = 40
    student_steps: tuple[int, ...] = (1000, 909, 725, 421, 0)
    guidance: GuidanceConfig = dataclasses.replace(
        LTX2_GUIDANCE, audio=dataclasses.replace(LTX2_GUIDANCE.audio, cfg=5.0)
    )


CONFIG = Config()
SHARDS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Compute):
    """Make ODE pairs of a teacher."""

    teacher: Path
    """Weights folder of the bidirectional teacher; its resolution is that of the pairs."""
    negative: str
    """Prompt that guidance pushes away from; must be in the contexts store, and gets no pair."""
    folder: Path
    """Store to write or to go on with."""
    shards: int | None = None
    """Files of the store, at least one for each process; by default 64, one per process where there are more
    of them, or one per prompt where there are fewer."""
    mesh: str = "1,1,1"
    """Devices of each process as replica,fsdp,tensor (docs/pod.md)."""
    layout: LayoutName = "fused"
    """The student's layout: `prefix2` has one audio latent more than the others, which have the same clips."""
    try_: Annotated[int, tyro.conf.arg(name="try")] = 0
    """Make so many clips, write none, and say what all of them will take."""
    config: Annotated[Config, tyro.conf.arg(name="")] = CONFIG


def open_teacher(folder: Path, config: Config) -> PipelineConfig:
    """Read what the teacher is.

    Raises:
        ValueError: If the folder is damaged, holds a causal student or has not the layers that guidance names.
    """
    found = ltx2_recipe.open_bidirectional("--teacher", folder)
    layers = found.model.layers
    for layer in config.guidance.stg_layers:
        require(layer < layers, "stg_layers", layer, f"must be below the teacher's {layers}")
    return found


def clip_frames(layout: Layout, seconds: int) -> tuple[int, int]:
    """Return the latent frames of video and audio of a clip of whole blocks.

    Raises:
        ValueError: If no clip of this layout has that length; names the nearest allowed ones.
    """
    last = layout.blocks(latent_frames(layout.frames_for(seconds)))[-1]
    return last.video_end, last.audio_end


def make(
    params: Transformer,
    seeds: jax.Array,
    prompt: TextContexts,
    negative: TextContexts,
    *,
    teacher: PipelineConfig,
    config: Config,
    frames: tuple[int, int],
    dtype: np.dtype,
) -> Streams:
    """Make trajectories at the student's levels, [E, B, T, C] and [E, B, A, C].

    `negative` is a batch of one, `frames` are `clip_frames`.
    """
    sigmas = ltx2_schedule(config.steps)
    indices, _ = snap(config.student_steps, sigmas)
    (video, audio), grid = frames, teacher.grid(*teacher.resolution)
    positions = make_positions(teacher.model, clip_block(video, audio), grid)
    noise = noise_of_seeds(seeds, teacher.model, (video * grid[0] * grid[1], audio))
    away = jax.tree.map(lambda x: jnp.repeat(x, len(seeds), axis=0), negative)
    predict = clip_network(teacher.model, positions, dtype=dtype).guided_x0(params, prompt, away, config.guidance)
    return trajectory_entries(predict, noise, jnp.asarray(sigmas, jnp.float32), indices)


def say_cost(make_rows: Callable[[np.ndarray], Streams], arguments: Arguments, header: Header, processes: int) -> None:
    """Make clips without writing them, and print seconds and bytes of each and of all.

    Raises:
        ValueError: If a trajectory is not finite, or the disk has no room for all of them.
    """

    def make_batch(first: int) -> float:
        begun = time.monotonic()
        rows = np.arange(first, first + arguments.batch) % header.count
        made = jax.device_get(make_rows(rows.astype(np.int32)))
        finite = all(bool(np.isfinite(entries).all()) for entries in made)
        require(finite, "teacher", str(arguments.teacher), f"makes values that are not finite, in rows {rows.tolist()}")
        return time.monotonic() - begun

    compiling = make_batch(0)
    batches = -(-arguments.try_ // arguments.batch)
    each = sum(make_batch(index * arguments.batch) for index in range(batches)) / batches / arguments.batch
    size = sum(math.prod(shape) * np.dtype(kind).itemsize for kind, shape in header.arrays.values())
    hours, whole = each * header.count / processes / 3600, size * header.count
    place = next(parent for parent in (arguments.folder, *arguments.folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    print(
        f"first batch {compiling:.1f} s, compiling included; then {each:.2f} s and {size / 1e6:.2f} MB a clip; "
        f"{header.count} clips take {hours:.2f} h in {processes} processes and {whole / 1e9:.3f} GB, of which "
        f"{free / 1e9:.0f} GB are free"
    )
    require(whole < free, "folder", str(arguments.folder), f"needs {whole / 1e9:.1f} GB, {free / 1e9:.1f} are free")


def main(arguments: Arguments) -> None:
    """Make the pairs that are missing; bad input is one line on stderr and exit code 2."""
    config = arguments.config
    with refusing(), ltx2_recipe.set_up(arguments.batch, arguments.mesh, alone=True) as mesh:
        teacher = open_teacher(arguments.teacher, config)
        contexts = ltx2_recipe.open_contexts(arguments.contexts, teacher.model)
        negative = meshes.replicate(ltx2_recipe.context_of(contexts, arguments.negative), mesh)
        prompts = ltx2_recipe.Prompts(contexts, arguments.negative)
        require(arguments.try_ >= 0, "try", arguments.try_, "must not be negative")
        processes = jax.process_count()
        shards = min(max(SHARDS, processes), len(prompts)) if arguments.shards is None else arguments.shards
        rule = f"must lie between the {processes} processes and the {len(prompts)} prompts"
        require(processes <= shards <= len(prompts), "shards", shards, rule)
        frames, dtype = clip_frames(LAYOUTS[arguments.layout], config.seconds), jnp.dtype(arguments.dtype)
        params = ltx2_recipe.load_network(arguments.teacher, teacher.model, dtype, 0, mesh)
        header = pairs_header(
            count=len(prompts),
            shards=shards,
            sigmas=snap(config.student_steps, ltx2_schedule(config.steps))[1],
            video=(frames[0], *teacher.grid(*teacher.resolution), teacher.model.video.latent_channels),
            audio=(frames[1], teacher.model.audio.latent_channels),
            teacher=weights.fingerprint(params),
        )
        program = jax.jit(partial(make, teacher=teacher, config=config, frames=frames, dtype=dtype))

        def make_rows(rows: np.ndarray) -> Streams:
            batch = data.stack_rows(prompts, rows)
            placed = contexts_of(meshes.place_batch(batch, arguments.batch, mesh))
            seeds = meshes.place_batch(rows, arguments.batch, mesh)
            return program(params, jnp.asarray(seeds), placed, negative)

        if arguments.try_:
            say_cost(make_rows, arguments, header, processes)
            return
        with writing(arguments.folder, header, process=jax.process_index(), processes=processes) as writer:
            write_pairs(writer, arguments.batch, make_rows, lambda row: (prompts.prompts[row], {}))


if __name__ == "__main__":
    main(read_flags(Arguments, __doc__))
