"""What the recipes for LTX-2 share: opening what a run begins from, loading its networks, running and writing it.

Everything is checked against everything else before a weight is read. Masters are float32, a frozen teacher is in the
type that is computed in. A run that reached its last step leaves a weights folder, from which the next stage begins.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from experiments.script import start_logging
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.distill.generator_critic import Frozen, contexts_of
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
from omniforcing_jax.strict_json import require
from omniforcing_jax.text import contexts as text_contexts
from omniforcing_jax.train import data, loop
from omniforcing_jax.train import distil as train_distil
from omniforcing_jax.train.compare import differences, refuse
from omniforcing_jax.train.contexts import Contexts
from omniforcing_jax.train.data import Source
from omniforcing_jax.train.distil import DistillConfig, Networks
from omniforcing_jax.train.pairs import Pairs
from omniforcing_jax.train.step import DistillMethod
from omniforcing_jax.train.store import read_header

LayoutName = Literal["fused", "prefix"]
LAYOUTS = {"fused": FUSED, "prefix": PREFIX}
SINKS = {"fused": 0, "prefix": 16}  # OmniForcing's release (v2) has none, the paper's layout needs them

# Noise levels of OmniForcing at 9c25f15 (v1) and 50a271f (v2), snapped to the teacher's schedule of 40 steps as there.
V1_SIGMAS = snap((1000, 757, 522, 0), ltx2_schedule(40))[1]
V2_SIGMAS = snap((1000, 909, 725, 421, 0), ltx2_schedule(40))[1]

# What must be alike for one network to score another's clips of the same prompts.
ALIKE = ("layers", "video", "audio", "caption_channels", "gated_attention", "text_adaln", "spatial_compression")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """What everything that runs LTX-2 on prompts takes."""

    contexts: Path
    """Store of the prompts' text contexts (docs/pairs.md)."""
    batch: int = 1
    """Prompts at once, on all devices together."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type to compute in."""
    mesh: str = "1,1,1"
    """Devices as replica,fsdp,tensor (docs/pod.md); all of them. A run may be continued on another mesh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Compute):
    """What every recipe takes."""

    student: Path
    """Weights folder that the network in training begins from."""
    folder: Path
    """Folder for checkpoints, metrics and, after the last step, `weights`; a run found there goes on."""
    steps: int
    """Stop after so many steps in all."""
    seed: int = 0
    """Random seed of noise, of the order of the prompts, and of new sinks."""


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
class CausalArguments:
    """What a recipe for a causal student takes."""

    layout: LayoutName = "fused"
    """Blocks of 4 + 26 latents, then 3 + 25, as released; or of 1 + 1, then 3 + 25, with sinks, as in the paper."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmdArguments(Arguments):
    """What a recipe with a teacher and a critic takes."""

    teacher: Path
    """Weights folder of the bidirectional teacher; the critic begins as it."""
    negative: str
    """Negative prompt of the teacher's guidance; it must be in the contexts store."""


class Opened(NamedTuple):
    """What a recipe with a critic begins from, no weights among it.

    Attributes:
      student: what the generator is.
      teacher: what network teacher and critic are.
      contexts: of all prompts.
      negative: context of the negative prompt.
    """

    student: PipelineConfig
    teacher: ModelConfig
    contexts: Contexts
    negative: text_contexts.TextContexts


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
    start_logging(level)
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
        raise ValueError(
            f"--student {student.name}: networks with text AdaLN (LTX-2.3) cannot be trained on masked clips, because "
            "their text needs a single noise level per clip; stage3_self_forcing can train them"
        )
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


def context_of(contexts: Contexts, prompt: str) -> text_contexts.TextContexts:
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
    """Describe a run for its checkpoints: all of its values but its folder and its length."""
    unsaid = ("student", "teacher", "contexts", "pairs", "folder", "steps", "mesh")
    told = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in unsaid}
    sampler = None if student.sampler is None else student.sampler.to_dict()
    network = {"model": student.model.to_dict(), "sampler": sampler, "resolution": student.resolution}
    return {"config": dataclasses.asdict(config), "arguments": told, "student": network}


def open_dmd(arguments: DmdArguments, student: PipelineConfig) -> Opened:
    """Open the teacher and the contexts of a training with a critic, and check them against the student.

    Raises:
      ValueError: if the teacher's folder or the store does not fit, or the negative prompt has no context.
    """
    teacher = open_teacher(arguments.teacher, student)
    contexts = open_contexts(arguments.contexts, student.model)
    return Opened(student, teacher, contexts, context_of(contexts, arguments.negative))


def distil(
    run: Run, arguments: DmdArguments, config: DistillConfig, opened: Opened, source: Source, method: DistillMethod
) -> None:
    """Load the networks, train generator and critic, and write the generator's average once the run is whole.

    Args:
      run: how long and where.
      arguments: the recipe's flags.
      config: its values.
      opened: student, teacher and negative prompt.
      source: of batches.
      method: the gradients of both networks.

    Raises:
      ValueError: before the first step, as `loop.train` and `load_network` do.
    """
    dtype, mesh, student = jnp.dtype(arguments.dtype), run.mesh, opened.student
    batches = data.PlacedBatches(source, arguments.batch, arguments.seed, mesh)
    generator = load_network(arguments.student, student.model, jnp.float32, arguments.seed, mesh)
    critic, teacher = (load_network(arguments.teacher, opened.teacher, kind, 0, mesh) for kind in (jnp.float32, dtype))
    frozen = Frozen(teacher, meshes.replicate(opened.negative, mesh))
    networks = Networks(generator, critic, frozen, transformer_spec(student.model), arguments.seed, mesh)
    described = describe(arguments, config, student)
    trained = train_distil.distil(method, config, networks, batches, run.loop, describe=described)
    if int(trained.step) == arguments.steps:
        save_weights(arguments.folder / "weights", student, trained.generator.ema, arguments.student, dtype)


def layout_of(name: LayoutName) -> tuple[Layout, int]:
    """Return a layout, and its number of sinks."""
    return LAYOUTS[name], SINKS[name]
