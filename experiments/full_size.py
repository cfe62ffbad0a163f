"""What the recipes for LTX-2 share: opening what a run begins from, making steps of its players, running it.

Everything is held against everything else before a weight is read. Masters are float32, a frozen teacher rests in the
type that is computed in. A run that reached its last step leaves a weights folder, from which the next stage begins.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.distill import dmd
from omniforcing_jax.distill.generator_critic import SelfForcing, WholeClip
from omniforcing_jax.io import machine, weights
from omniforcing_jax.layout import FUSED, PREFIX, Layout, latent_frames
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import distributed
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.parallel.spec import Spec
from omniforcing_jax.pipeline.pipeline import PipelineConfig, assemble
from omniforcing_jax.pipeline.weights_folder import locate_components, read_pipeline_config, save_pipeline
from omniforcing_jax.schedule import ltx2_schedule, snap
from omniforcing_jax.streams import Streams
from omniforcing_jax.strict_json import require
from omniforcing_jax.train import data, gradient, loop, optimiser, state, step
from omniforcing_jax.train.compare import differences, refuse
from omniforcing_jax.train.contexts import Contexts
from omniforcing_jax.train.data import Source
from omniforcing_jax.train.optimiser import OptimiserConfig
from omniforcing_jax.train.pairs import Pairs
from omniforcing_jax.train.store import read_header

LayoutName = Literal["fused", "prefix"]
LAYOUTS = {"fused": FUSED, "prefix": PREFIX}
SINKS = {
    "fused": 0,
    "prefix": 16,
}  # the release (v2) has none, the paper's layout needs them (specs/omniforcing.md 4.4)

# Both lists are snapped to the teacher's schedule of 40 steps (specs/omniforcing.md 6.2).
V1_SIGMAS = snap((1000, 757, 522, 0), ltx2_schedule(40))[1]
V2_SIGMAS = snap((1000, 909, 725, 421, 0), ltx2_schedule(40))[1]

# What must be alike for one network to score another's clips of the same prompts.
ALIKE = ("layers", "video", "audio", "caption_channels", "gated_attention", "text_adaln", "spatial_compression")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every recipe is told."""

    student: Path
    """Weights folder from which the network in training begins."""
    contexts: Path
    """Store of the prompts' text contexts (docs/pairs.md)."""
    folder: Path
    """Checkpoints, metrics and, after the last step, `weights` go here; a run found here is continued."""
    steps: int
    """Stop after so many steps in all."""
    batch: int = 1
    """Prompts per step."""
    seed: int = 0
    """Of noise, of the order of the prompts, and of new sinks."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type to compute in."""
    mesh: str = "1,1,1"
    """Devices as replica,fsdp,tensor (docs/pod.md); all of them. A run may be continued on another mesh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """How long a run is, and where.

    Attributes:
      loop: of the trainer.
      mesh: that is set; None is one device.
    """

    loop: loop.LoopConfig
    mesh: Mesh | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmdArguments(Arguments):
    """What a recipe with a teacher and a critic is told."""

    teacher: Path
    """Weights folder of the bidirectional teacher; the critic begins as it."""
    negative: str
    """Negative prompt of the teacher's guidance; must be in the contexts store."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoPlayers:
    """How generator and critic are trained (specs/omniforcing.md 7.1).

    Attributes:
      generator, critic: the generator's schedule counts its own updates.
      ratio: critic updates per update of the generator.
      ema_decay, ema_from: of the generator's average, which is the run's result.
    """

    generator: OptimiserConfig
    critic: OptimiserConfig
    ratio: int = 5
    ema_decay: float = 0.99
    ema_from: int = 200


@contextlib.contextmanager
def set_up(batch: int, mesh: str, *, alone: bool = False) -> Iterator[Mesh | None]:
    """Join the other processes, set logging, the compilation cache and the mesh up; gives the mesh, None is one device.

    Args:
      batch: rows of a batch.
      mesh: as `--mesh` has it.
      alone: each process works and speaks for itself, on its own devices.

    Raises:
      ValueError: if there are no rows, or the mesh fits neither the devices nor the batch.
    """
    distributed.start()
    level = logging.INFO if alone or distributed.speaks() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    machine.use_compilation_cache()
    require(batch >= 1, "batch", batch, "must be at least 1")
    wanted = MeshConfig.parse(mesh)
    wanted.check_batch(batch)
    with meshes.use(wanted, alone=alone) as made:
        yield made


@contextlib.contextmanager
def begin(arguments: Arguments) -> Iterator[Run]:
    """Set up what a run needs, see `set_up`.

    Raises:
      ValueError: as there, and if there are no steps.
    """
    config = loop.LoopConfig(folder=arguments.folder, steps=arguments.steps)
    with set_up(arguments.batch, arguments.mesh) as mesh:
        yield Run(loop=config, mesh=mesh)


def open_bidirectional(flag: str, folder: Path) -> PipelineConfig:
    """Read what a bidirectional network is.

    Raises:
      ValueError: if the folder is damaged or holds a causal student; names the flag.
    """
    found = read_pipeline_config(folder)
    if found.sampler is not None or found.model.sinks:
        raise ValueError(f"{flag} {folder}: holds a causal student, expected a bidirectional network")
    return found


def open_student(folder: Path, sampler: SamplerConfig, sinks: int) -> PipelineConfig:
    """Read what a causal student begins from, and say what it will be.

    Args:
      folder: its weights.
      sampler: what it will be trained as.
      sinks: how many it gets where it has none.

    Raises:
      ValueError: if the folder is damaged, or holds a student of other blocks.
    """
    found = read_pipeline_config(folder)
    if found.sampler is not None:
        was, wanted = (dataclasses.asdict(config.layout) for config in (found.sampler, sampler))
        refuse(f"--student {folder}", "trained on other blocks, see --layout", differences(was, wanted))
    model = found.model if found.model.sinks else dataclasses.replace(found.model, sinks=sinks)
    return dataclasses.replace(found, model=model, sampler=sampler)


def open_teacher(folder: Path, student: PipelineConfig) -> ModelConfig:
    """Read what network the teacher is.

    Raises:
      ValueError: if the folder is damaged, holds a causal student or a network of other sizes than the student's.
    """
    found = open_bidirectional("--teacher", folder)
    own, wanted = ({name: model.to_dict()[name] for name in ALIKE} for model in (found.model, student.model))
    refuse(f"--teacher {folder}", "another network than the student", differences(own, wanted))
    return found.model


def open_contexts(folder: Path, model: ModelConfig) -> Contexts:
    """Open the contexts of a network's prompts.

    Raises:
      ValueError: if the store is missing, damaged or of other widths.
    """
    video, audio = (model.caption_channels or stream.width for stream in (model.video, model.audio))
    return Contexts(folder, channels=(video, audio))


def open_pairs(folder: Path, student: PipelineConfig, sampler: SamplerConfig) -> Pairs:
    """Open pairs at the student's levels, of clips as long as its horizon and as large as its pictures.

    Raises:
      ValueError: if the store is missing, damaged or of other levels, lengths, sizes or latents; or if the student is
        one that a masked forward cannot train.
    """
    model = student.model
    if model.text_adaln:
        raise ValueError("--student: text_adaln=True: a masked clip has no one noise level for its text")
    channels = model.video.latent_channels, model.audio.latent_channels
    pairs = Pairs(folder, sigmas=sampler.sigmas, layout=sampler.layout, channels=channels)
    found = dict(zip(("frames", "rows", "columns"), read_header(folder).arrays["video"][1][1:4], strict=True))
    rows, columns = student.grid(*student.resolution)
    frames = latent_frames(sampler.layout.frames_for(sampler.horizon_seconds))
    refuse(folder, "other latents", differences(found, {"frames": frames, "rows": rows, "columns": columns}))
    return pairs


class Prompts(Source):
    """The contexts of a store, but for one prompt: what is pushed away from is no example."""

    def __init__(self, contexts: Contexts, without: str):
        """Find the prompt.

        Raises:
          ValueError: if it is not there.
        """
        row = contexts.row_of(without)
        self._contexts, self._rows = contexts, [i for i in range(len(contexts)) if i != row]
        self.prompts = [contexts.prompts[i] for i in self._rows]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read a context."""
        return self._contexts[self._rows[index]]


def contexts_of(batch: dict[str, Any]) -> dmd.TextContexts:
    """Take the text features of a batch."""
    video, audio, mask = (batch[f"context_{name}"] for name in ("video", "audio", "mask"))
    return dmd.TextContexts(video, audio, mask.astype(jnp.int32))


def context_of(contexts: Contexts, prompt: str) -> dmd.TextContexts:
    """Read the text features of one prompt, as a batch of one.

    Raises:
      ValueError: if there are none.
    """
    return contexts_of({name: jnp.asarray(array[None]) for name, array in contexts[contexts.row_of(prompt)].items()})


def load_network(
    folder: Path, model: ModelConfig, dtype: DTypeLike, seed: int = 0, mesh: Mesh | None = None
) -> Transformer:
    """Load a transformer; sinks that `model` has and the folder lacks are drawn, N(0, 0.02^2).

    Raises:
      ValueError: in one line, if weights are missing, unknown or mis-shaped, or the mesh cannot cut the network.
    """
    if mesh is not None:
        meshes.config_of(mesh).check_network(model)
    own = read_pipeline_config(folder).model
    wanted = meshes.abstract(transformer_spec(own), mesh, dtype)
    params = weights.load_component(*locate_components(folder)["transformer"], wanted)
    if own.sinks == model.sinks:
        return params
    new = transformer_spec(model).sinks
    assert isinstance(new, Spec)
    logging.info("%s: %d new sinks", folder, model.sinks)
    sinks = new.init(jax.random.key(seed), new.shape, dtype)
    return dataclasses.replace(params, sinks=meshes.replicate(sinks, mesh))


def save_weights(folder: Path, config: PipelineConfig, params: Transformer, begun: Path, dtype: DTypeLike) -> None:
    """Write a weights folder that shares all but its transformer with the folder `begun`."""
    places = {name: place / component for name, (place, component) in locate_components(begun).items()}
    others = {name: path for name, path in places.items() if name != "transformer" and path.is_dir()}
    shared = {name: os.path.relpath(path.resolve(), folder.resolve()) for name, path in others.items()}
    save_pipeline(
        folder, assemble(config, {"transformer": params, **dict.fromkeys(others)}), shared=shared, dtype=dtype
    )
    logging.info("wrote %s", folder)


def describe(arguments: Arguments, config: Any, student: PipelineConfig) -> dict[str, Any]:
    """Say what makes a run the run that it is; not where it lies, nor how long it is."""
    unsaid = ("student", "teacher", "contexts", "pairs", "folder", "steps", "mesh")
    told = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in unsaid}
    sampler = None if student.sampler is None else student.sampler.to_dict()
    network = {"model": student.model.to_dict(), "sampler": sampler, "resolution": student.resolution}
    return {"config": dataclasses.asdict(config), "arguments": told, "student": network}


def gradients(
    players: SelfForcing | WholeClip, clips_of: Callable[[dict[str, Any]], Streams] | None = None
) -> tuple[gradient.Gradient, gradient.Gradient]:
    """Build what the trainer asks of the generator and of the critic; beside them stand teacher and negative context.

    Args:
      players: who they are.
      clips_of: takes the clean clips of a batch, for players that begin from such.
    """

    def given(batch: dict[str, Any]) -> tuple[Streams, ...]:
        return () if clips_of is None else (clips_of(batch),)

    def generator(params: Any, batch: dict, key: jax.Array, extra: None, critic: Any, teacher: Any, negative: Any):
        contexts = contexts_of(batch)
        rows = jax.tree.map(lambda x: jnp.repeat(x, contexts.video.shape[0], axis=0), negative)
        value, metrics, grads = players.generator(params, contexts, rows, key, critic, teacher, *given(batch))
        return gradient.Graded(value, metrics, extra, grads)

    def critic(params: Any, batch: dict, key: jax.Array, extra: None, generator: Any, teacher: Any, negative: Any):
        value, metrics = players.critic(params, contexts_of(batch), key, generator, *given(batch))
        return value, (metrics, extra)

    return generator, gradient.of_loss(critic)


def distil(
    run: Run,
    arguments: DmdArguments,
    config: TwoPlayers,
    student: PipelineConfig,
    teacher: ModelConfig,
    negative: dmd.TextContexts,
    source: Source,
    players: SelfForcing | WholeClip,
    clips_of: Callable[[dict[str, Any]], Streams] | None = None,
) -> None:
    """Load the networks, train both players, and write the generator's average once the run is whole.

    Args:
      run: how long and where.
      arguments: what the recipe was told.
      config: its values.
      student: what the generator is.
      teacher: what network teacher and critic are.
      negative: context of the negative prompt.
      source: of batches.
      players: see `gradients`.
      clips_of: see `gradients`.

    Raises:
      ValueError: before the first step, as `loop.train` and `load_network` do.
    """
    dtype, mesh = jnp.dtype(arguments.dtype), run.mesh
    batches = data.PlacedBatches(source, arguments.batch, arguments.seed, mesh)
    rules = optimiser.optimiser(config.generator), optimiser.optimiser(config.critic)
    generator = load_network(arguments.student, student.model, jnp.float32, arguments.seed, mesh)
    critic, frozen = (load_network(arguments.teacher, teacher, kind, 0, mesh) for kind in (jnp.float32, dtype))
    pair = partial(state.create_pair, generator_optimiser=rules[0], critic_optimiser=rules[1], seed=arguments.seed)
    trainer = meshes.make_beside(pair, generator, critic, specs=transformer_spec(student.model), mesh=mesh)
    negative = meshes.replicate(negative, mesh)
    update = step.make_distill_step(
        *gradients(players, clips_of),
        *rules,
        ratio=config.ratio,
        ema_decay=config.ema_decay,
        ema_from=config.ema_from,
        site_of=gradient.network_site,
    )
    described = describe(arguments, config, student)
    trained = loop.train(run.loop, trainer, update, batches, beside=(frozen, negative), describe=described)
    if int(trained.step) == arguments.steps:
        save_weights(arguments.folder / "weights", student, trained.generator.ema, arguments.student, dtype)


def layout_of(name: LayoutName) -> tuple[Layout, int]:
    """Return a layout, and the sinks that it wants."""
    return LAYOUTS[name], SINKS[name]
