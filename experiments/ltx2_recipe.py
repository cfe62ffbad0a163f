"""What the recipes for LTX-2 share: opening what a run begins from, loading its networks, running and writing it.

Everything is checked against everything else before a weight is read. Masters are float32, a frozen teacher is in the
type that is computed in. A run that reached its last step leaves a weights folder, from which the next stage begins.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from experiments import ltx2_samples
from experiments.ltx2_flags import Arguments, DmdArguments
from experiments.ltx2_samples import Examples, Sampler
from experiments.script import start_logging
from omniforcing_jax.config import CrossTimestep, ModelConfig, SamplerConfig
from omniforcing_jax.distill.generator_critic import Frozen, contexts_of
from omniforcing_jax.io import machine, weights
from omniforcing_jax.layout import latent_frames
from omniforcing_jax.model.transformer import Transformer, transformer_spec
from omniforcing_jax.parallel import distributed
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.parallel.mesh import MeshConfig
from omniforcing_jax.parallel.spec import Spec
from omniforcing_jax.pipeline.pipeline import PipelineConfig, abstract_pipeline
from omniforcing_jax.pipeline.weights_folder import locate_components, read_pipeline_config, save_pipeline
from omniforcing_jax.strict_json import require
from omniforcing_jax.text import contexts as text_contexts
from omniforcing_jax.train import data, loop
from omniforcing_jax.train import distil as train_distil
from omniforcing_jax.train.compare import differences, refuse
from omniforcing_jax.train.contexts import Contexts
from omniforcing_jax.train.data import Source
from omniforcing_jax.train.distil import Networks
from omniforcing_jax.train.pairs import Pairs
from omniforcing_jax.train.state import DistillState
from omniforcing_jax.train.step import DistillMethod
from omniforcing_jax.train.store import read_header

# Flags that change no result: where things are, and what is shown.
UNSAID = (
    "student",
    "teacher",
    "contexts",
    "pairs",
    "clips",
    "mesh",
    "sample_every",
    "sample_prompts",
    "evaluate_every",
)

# What must be alike for one network to score another's clips of the same prompts.
ALIKE = (
    *("layers", "video", "audio", "caption_channels", "gated_attention", "text_adaln", "prompt_time"),
    *("keyframe_embedding", "spatial_compression"),
)


class Opened(NamedTuple):
    """What a recipe with a critic begins from, no weights among it.

    Attributes:
        student: What the generator is.
        teacher: What network teacher and critic are.
        contexts: Of all prompts.
        negative: Context of the negative prompt.
    """

    student: PipelineConfig
    teacher: ModelConfig
    contexts: Contexts
    negative: text_contexts.TextContexts


@contextlib.contextmanager
def set_up(batch: int, mesh: str, *, alone: bool = False) -> Iterator[Mesh | None]:
    """Join the other processes, set logging, the compilation cache and the mesh up; gives the mesh, None is one device.

    Args:
        batch: Rows of a batch.
        mesh: As `--mesh` has it.
        alone: Each process works and speaks for itself, on its own devices.

    Raises:
        ValueError: If there are no rows, or the mesh fits neither the devices nor the batch.
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


def open_bidirectional(flag: str, folder: Path) -> PipelineConfig:
    """Read what a bidirectional network is.

    Raises:
        ValueError: If the folder is damaged or holds a causal student; names the flag.
    """
    found = read_pipeline_config(folder)
    if found.sampler is not None or found.model.sinks:
        raise ValueError(f"{flag} {folder}: holds a causal student, expected a bidirectional network")
    return found


def open_student(
    folder: Path, sampler: SamplerConfig, sinks: int, cross_timestep: CrossTimestep = CrossTimestep.OWN
) -> PipelineConfig:
    """Read what a causal student begins from, and say what it will be.

    A bidirectional network becomes one with the crossings that the recipe sets; where all noise levels of a clip are
    equal, as its teacher's are, that is the same function. A student keeps those it was trained with.

    Args:
        folder: Its weights.
        sampler: What it will be trained as.
        sinks: How many it gets where it has none.
        cross_timestep: Whose noise level drives its crossings.

    Raises:
        ValueError: If the folder is damaged, or holds a network with camera attention, a student of other blocks or
            crossings, or nothing takes the `scalar_sigma`.
    """
    found = read_pipeline_config(folder)
    if found.model.camera is not None:
        raise ValueError(f"--student {folder}: has camera attention, and a training has no cameras yet")
    if found.sampler is not None:
        was, wanted = (dataclasses.asdict(config.layout) for config in (found.sampler, sampler))
        refuse(f"--student {folder}", "trained on other blocks, see --layout", differences(was, wanted))
        was, wanted = (
            {"cross_timestep": crossings.value, "scalar_sigma": held.scalar_sigma}
            for crossings, held in ((found.model.cross_timestep, found.sampler), (cross_timestep, sampler))
        )
        refuse(f"--student {folder}", "trained with other crossings", differences(was, wanted))
    model = dataclasses.replace(found.model, sinks=found.model.sinks or sinks, cross_timestep=cross_timestep)
    return dataclasses.replace(found, model=model, sampler=sampler)


def open_teacher(folder: Path, student: PipelineConfig) -> ModelConfig:
    """Read what network the teacher is.

    Raises:
        ValueError: If the folder is damaged, holds a causal student or a network of other sizes than the student's.
    """
    found = open_bidirectional("--teacher", folder)
    own, wanted = ({name: model.to_dict()[name] for name in ALIKE} for model in (found.model, student.model))
    refuse(f"--teacher {folder}", "another network than the student", differences(own, wanted))
    return found.model


def open_contexts(folder: Path, model: ModelConfig) -> Contexts:
    """Open the contexts of a network's prompts.

    Raises:
        ValueError: If the store is missing, damaged or of other widths.
    """
    video, audio = (model.caption_channels or stream.width for stream in (model.video, model.audio))
    return Contexts(folder, channels=(video, audio))


def check_masked(model: ModelConfig, sampler: SamplerConfig) -> None:
    """Check that a network can learn from masked clips.

    Raises:
        ValueError: Something in it needs one noise level for the whole clip.
    """
    if sampler.scalar_sigma is not None:
        return
    rule = "a masked clip has a noise level per block, so its crossings must take their own, or --scalar-sigma"
    require(model.cross_timestep is CrossTimestep.OWN, "cross_timestep", model.cross_timestep.value, rule)
    rule = "a masked clip has a noise level per block, but text AdaLN (LTX-2.3) needs one: give --scalar-sigma 1"
    require(not model.text_needs_sigma, "scalar_sigma", None, rule)


def open_pairs(folder: Path, student: PipelineConfig, sampler: SamplerConfig) -> Pairs:
    """Open pairs at the student's levels, of clips as long as its horizon and as large as its pictures.

    Raises:
        ValueError: If the store is missing, damaged or of other levels, lengths, sizes or latents; or if the student is
            one that a masked forward cannot train.
    """
    model = student.model
    check_masked(model, sampler)
    channels = model.video.latent_channels, model.audio.latent_channels
    pairs = Pairs(folder, sigmas=sampler.sigmas, layout=sampler.layout, channels=channels)
    found = dict(zip(("frames", "rows", "columns"), read_header(folder).arrays["video"][1][1:4], strict=True))
    rows, columns = student.grid(*student.resolution)
    frames = latent_frames(sampler.layout.frames_for(sampler.horizon_seconds))
    refuse(folder, "other latents", differences(found, {"frames": frames, "rows": rows, "columns": columns}))
    return pairs


class Prompts(data.Rows):
    """The contexts of a store, but for one prompt: what is pushed away from is no example."""

    def __init__(self, contexts: Contexts, without: str):
        """Find the prompt.

        Raises:
            ValueError: If it is not there.
        """
        row = contexts.row_of(without)
        rows = [i for i in range(len(contexts)) if i != row]
        super().__init__(contexts, rows)
        self.prompts = [contexts.prompts[i] for i in rows]


def context_of(contexts: Contexts, prompt: str) -> text_contexts.TextContexts:
    """Read the text features of one prompt, as a batch of one.

    Raises:
        ValueError: If there are none.
    """
    return contexts_of({name: jnp.asarray(array[None]) for name, array in contexts[contexts.row_of(prompt)].items()})


def load_network(
    folder: Path, model: ModelConfig, dtype: DTypeLike, seed: int = 0, mesh: Mesh | None = None
) -> Transformer:
    """Load a transformer; sinks that `model` has and the folder lacks are drawn, N(0, 0.02^2).

    Raises:
        ValueError: In one line, if weights are missing, unknown or mis-shaped, or the mesh cannot cut the network.
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
    pipeline = dataclasses.replace(abstract_pipeline(config), transformer=params)  # of the others nothing is written
    save_pipeline(folder, pipeline, shared=shared, dtype=dtype)
    logging.info("wrote %s", folder)


def describe(arguments: Arguments, student: PipelineConfig, teacher: ModelConfig | None = None) -> dict[str, Any]:
    """Describe a run for its checkpoints: all that its results depend on but paths, and neither how long nor where."""
    told = dataclasses.asdict(arguments)
    for name in (*(field.name for field in dataclasses.fields(loop.LoopConfig)), *UNSAID):
        told.pop(name, None)
    sampler = None if student.sampler is None else student.sampler.to_dict()
    network = {"model": student.model.to_dict(), "sampler": sampler, "resolution": student.resolution}
    return {
        "config": told.pop("config"),
        "arguments": told,
        "student": network,
        "teacher": None if teacher is None else teacher.to_dict(),
    }


def open_dmd(arguments: DmdArguments, student: PipelineConfig) -> Opened:
    """Open the teacher and the contexts of a training with a critic, and check them against the student.

    Raises:
        ValueError: If the teacher's folder or the store does not fit, or the negative prompt has no context.
    """
    teacher = open_teacher(arguments.teacher, student)
    contexts = open_contexts(arguments.contexts, student.model)
    return Opened(student, teacher, contexts, context_of(contexts, arguments.negative))


def texts(
    arguments: Arguments, contexts: Contexts, prompts: Sequence[str]
) -> list[tuple[str, text_contexts.TextContexts]]:
    """Choose the prompts of sample clips, the first ones, with their contexts."""
    return [(prompt, context_of(contexts, prompt)) for prompt in prompts[: arguments.sample_prompts]]


def sample_hooks(
    arguments: Arguments, config: PipelineConfig, shown: Examples, params_of: Callable[[Any], Transformer]
) -> tuple[loop.Hook, ...]:
    """Make clips of the network in training every so many steps, see ltx2_samples.

    Raises:
        ValueError: If the codecs of the student's folder are missing or damaged.
    """
    sampler = Sampler(
        folder=arguments.folder / "samples",
        begun=arguments.student,
        config=config,
        examples=shown,
        params_of=params_of,
        dtype=jnp.dtype(arguments.dtype),
    )
    return ltx2_samples.hooks(arguments.sample_every, sampler)


def generator_average(state: DistillState) -> Transformer:
    """Take the generator's average out of a trainer's state."""
    return state.generator.ema


def distil(
    arguments: DmdArguments,
    opened: Opened,
    source: Source,
    method: DistillMethod,
    shown: Examples,
    mesh: Mesh | None,
    measures: tuple[loop.Measure, ...] = (),
) -> None:
    """Load the networks, train generator and critic, and write the generator's average once the run is whole.

    Args:
        arguments: The recipe's flags, with its values.
        opened: Student, teacher and negative prompt.
        source: Of batches.
        method: The gradients of both networks.
        shown: What sample clips show.
        mesh: None is one device.
        measures: See `loop.train`.

    Raises:
        ValueError: Before the first step, as `loop.train` and `load_network` do.
    """
    dtype, student = jnp.dtype(arguments.dtype), opened.student
    batches = data.PlacedBatches(source, arguments.batch, arguments.seed, mesh)
    hooks = sample_hooks(arguments, student, shown, generator_average)
    generator = load_network(arguments.student, student.model, jnp.float32, arguments.seed, mesh)
    critic, teacher = (load_network(arguments.teacher, opened.teacher, kind, 0, mesh) for kind in (jnp.float32, dtype))
    frozen = Frozen(teacher, meshes.replicate(opened.negative, mesh))
    networks = Networks(generator, critic, frozen, transformer_spec(student.model), arguments.seed, mesh)
    described = describe(arguments, student, opened.teacher)
    extras = {"hooks": hooks, "measures": measures, "describe": described}
    trained = train_distil.distil(method, arguments.config, networks, batches, arguments, **extras)
    if int(trained.step) == arguments.steps:
        save_weights(arguments.folder / "weights", student, trained.generator.ema, arguments.student, dtype)
