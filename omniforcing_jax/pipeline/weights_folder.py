"""A weights folder on disk: its configs are read and checked, and the folder is loaded or saved.

    config.json   {"format": 1, "name": ..., "resolution": [H, W], "sampler": {...}, "components": {...}}

With `sampler` the network is a causal student, without it a bidirectional teacher. `components` has the paths, relative
to the folder, of components that are in another folder, so that a teacher and its student can share their codecs.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import DTypeLike, PyTree

from omniforcing_jax.codecs.audio_vae import AudioVAEConfig
from omniforcing_jax.codecs.upsampler_config import UpsamplerConfig
from omniforcing_jax.codecs.video_config import VideoVAEConfig
from omniforcing_jax.codecs.vocoder import VocoderConfig
from omniforcing_jax.config import ModelConfig, SamplerConfig
from omniforcing_jax.io import folder_swap, manifest, weights
from omniforcing_jax.io.atomic_write import AnyPath
from omniforcing_jax.io.tensor_file import TensorFile, open_tensors
from omniforcing_jax.model.transformer import transformer_spec
from omniforcing_jax.parallel import distributed
from omniforcing_jax.parallel import mesh as meshes
from omniforcing_jax.pipeline.pipeline import (
    Pipeline,
    PipelineConfig,
    abstract_pipeline,
    abstract_words,
    assemble,
    cut_rows,
    has_list,
    to_dict,
    with_list,
    with_weights_dtype,
)
from omniforcing_jax.pipeline.quantise import quantising
from omniforcing_jax.pipeline.shipped import STUDENT, find_weights
from omniforcing_jax.strict_json import parse, require
from omniforcing_jax.text.connector import ConnectorsConfig
from omniforcing_jax.text.encoder import Encoder, EncoderConfig
from omniforcing_jax.text.gemma_config import GemmaConfig
from omniforcing_jax.text.words import Words, WordsConfig

FORMAT = 1

KEYS = {"format", "name", "resolution", "sampler", "components"}
SPATIAL_UPSAMPLER = "spatial_upsampler"
COMPONENTS = (
    *(TRANSFORMER := "transformer", "video_vae", "audio_vae", "vocoder", "text", "connectors"),
    *(SPATIAL_UPSAMPLER, "temporal_upsampler"),
)


def save_pipeline(
    folder: AnyPath,
    pipeline: Pipeline,
    *,
    shared: Mapping[str, str] | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a weights folder.

    Args:
        folder: Made if it is missing.
        pipeline: Values and configs to write.
        shared: Components that are not written, because they are already at these paths relative to the folder. Gemma
            and connectors are never written, only shared.
        dtype: Type on disk; None keeps the type of each leaf, which eight bits and their scales need. Leaves that are
            declared in a type of their own keep it.

    Raises:
        ValueError: A type is given for weights in eight bits.
    """
    in_eight_bits = pipeline.config.model.eight_bits is not None
    require(dtype is None or not in_eight_bits, "dtype", dtype, "must be None for weights in eight bits")
    shared = dict(shared or {})
    written = {name: part for name, part in pipeline.parts.items() if name not in shared}
    declared = weights.name_leaves(transformer_spec(pipeline.config.model))
    kept = {TRANSFORMER: {name for name, spec in declared.items() if spec.dtype is not None}}
    with replacing_components(Path(folder)) as stage:
        for name, (values, part) in written.items():
            weights.save_component(stage, name, values, to_dict(part), dtype, kept.get(name, ()))
        weights.write_config(stage, _top_config(pipeline.config, shared))


def _top_config(config: PipelineConfig, shared: Mapping[str, str]) -> dict[str, Any]:
    top: dict[str, Any] = {"format": FORMAT, "name": config.name, "resolution": list(config.resolution)}
    if config.sampler is not None:
        top["sampler"] = config.sampler.to_dict()
    if shared:
        top["components"] = dict(shared)
    return top


@contextlib.contextmanager
def replacing_components(folder: Path) -> Iterator[Path]:
    """Context manager that puts components, config and manifest of a folder into place all at once.

    Every process must enter it. Only the first one writes.

    Yields:
        The folder to write into. Its manifest lists what was written; entries of components that stay are added.

    Raises:
        lock.TakenError: Another process writes to the folder.
    """
    if not distributed.speaks():
        yield folder
        return
    last = (weights.CONFIG, manifest.NAME)
    with folder_swap.swapping_in(folder, last, manifest.UNFINISHED) as stage:
        yield stage
        manifest.write(stage, {**_list_staying(folder, stage), **(manifest.read(stage) or {})})


def _list_staying(folder: Path, stage: Path) -> dict[str, manifest.Files]:
    """List the files of components that stay; those that no manifest lists yet are read."""
    names = [name for name in COMPONENTS if (folder / name).is_dir() and not (stage / name).is_dir()]
    if names and manifest.is_unfinished(folder):
        rule = "may be of a conversion that was interrupted; convert them too, or choose another folder"
        raise ValueError(f"{folder}: {', '.join(names)} {rule}")
    listed = manifest.read(folder) or {} if names else {}
    return {name: listed.get(name) or manifest.describe(folder / name) for name in names}


def read_pipeline_config(folder: AnyPath | None, *, upsampler: bool = False) -> PipelineConfig:
    """Read and check all configs of a weights folder, or of shipped weights by name, without opening any weights.

    Args:
        folder: The folder, or the name of shipped weights.
        upsampler: Whether the upsampler of the picture is needed. It is not looked at otherwise.

    Raises:
        ValueError: In one line, if a config is missing, damaged, has unknown keys or contradicts another.
    """
    folder = find_weights(folder)
    top, places = _read_top(folder)
    where = str(folder)

    def read(name: str, kind: Any) -> Any:
        return kind(weights.read_config(*places[name]))

    if upsampler and not _is_there(*places[SPATIAL_UPSAMPLER]):
        rule = "convert its file, such as ltx-2-spatial-upscaler-x2-1.0.safetensors, into this folder"
        raise ValueError(f"{where}: has no {SPATIAL_UPSAMPLER}; {rule}")
    try:
        text = _read_text(places)
        return PipelineConfig(
            name=str(top.get("name", Path(folder).name)),
            model=read("transformer", ModelConfig.from_dict),
            sampler=SamplerConfig.from_dict(top["sampler"]) if "sampler" in top else None,
            resolution=_two_numbers(top.get("resolution")),
            video_vae=read("video_vae", VideoVAEConfig.from_dict),
            audio_vae=read("audio_vae", AudioVAEConfig.from_dict),
            vocoder=read("vocoder", VocoderConfig.from_dict),
            words=text if isinstance(text, WordsConfig) else None,
            encoder=text.config if isinstance(text, Encoder) else None,
            upsampler=read(SPATIAL_UPSAMPLER, UpsamplerConfig.from_dict) if upsampler else None,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def find_text_encoder(folder: AnyPath) -> WordsConfig | Encoder | None:
    """Find the text encoder of a weights folder, which needs no other component; None if it has none.

    Raises:
        ValueError: In one line, if a config is missing, damaged or contradicts another.
    """
    folder = find_weights(folder)
    _, places = _read_top(folder)
    try:
        return _read_text(places)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}") from None


def load_words(folder: AnyPath, config: WordsConfig) -> Words:
    """Load only the word vectors of a weights folder.

    Raises:
        ValueError: As `load_pipeline`.
    """
    _, places = _read_top(folder)
    return weights.load_component(*places["text"], abstract_words(config))


def _read_text(places: Mapping[str, tuple[Path, str]]) -> WordsConfig | Encoder | None:
    """Read the config of the text encoder: words if the vocabulary is a list, else Gemma if it has connectors."""
    if not _is_there(*places["text"]):
        return None
    values = weights.read_config(*places["text"])
    if isinstance(values.get("vocabulary"), list):
        return WordsConfig.from_json(values)
    if not _is_there(*places["connectors"]):
        return None
    connectors = ConnectorsConfig.from_dict(weights.read_config(*places["connectors"]))
    config = EncoderConfig(gemma=GemmaConfig.from_dict(values), connectors=connectors)
    return Encoder(config=config, text=places["text"], connectors=places["connectors"])


def load_pipeline(
    weights: AnyPath | None = STUDENT,
    config: PipelineConfig | None = None,
    dtype: DTypeLike = jnp.float32,
    weights_dtype: str | None = None,
    *,
    upsampler: bool = False,
) -> Pipeline:
    """Load a weights folder. All names and shapes are checked before any tensor is read.

    With a mesh that is set the network is cut over it, and everything else lies whole on each of its devices.

    Args:
        weights: The folder, or the name of shipped weights: "chime" (also None) or "chime-teacher".
        config: What `read_pipeline_config` returned for the folder, if it was read already.
        dtype: Type of the network and the picture's codec. Sound and words are always float32.
        weights_dtype: "int8" or "float8" quantises the network's large matrices while they are loaded. None leaves them
            as they are in the folder.
        upsampler: Whether the upsampler of the picture is loaded too. A `config` that is given says it itself.

    Raises:
        ValueError: In one line, naming file and keys, if a config is damaged, if weights are missing, unknown or
            mis-shaped, or if the mesh cannot cut the network.
    """
    folder = find_weights(weights)
    config = read_pipeline_config(folder, upsampler=upsampler) if config is None else config
    return _load(folder, with_weights_dtype(config, weights_dtype), dtype)


def _load(folder: Path, config: PipelineConfig, dtype: DTypeLike) -> Pipeline:
    names = tuple(abstract_pipeline(config, dtype).parts)
    check_components(folder, config, names)
    return assemble(config, load_components(folder, config, dtype, names))


def check_components(folder: Path, config: PipelineConfig, names: Collection[str]) -> None:
    """Check names and shapes of some components' weights, without reading any.

    Raises:
        ValueError: As `load_pipeline`.
    """
    _, places = _read_top(folder)
    mesh = meshes.mesh_that_is_set()
    if mesh is not None:
        meshes.config_of(mesh).check_network(config.model)
    for name, (tree, _) in abstract_pipeline(config).parts.items():
        if name in names:
            file = _view_of(name, config)(open_tensors(Path(*places[name]) / weights.MODEL))
            shapes = {key: tuple(leaf.shape) for key, leaf in weights.name_leaves(tree).items()}
            weights.compare_shapes(file.shapes, shapes, str(file.path))
            manifest.check(places[name][0], [places[name][1]])


def load_components(
    folder: Path, config: PipelineConfig, dtype: DTypeLike, names: Collection[str]
) -> dict[str, PyTree]:
    """Load some components of a weights folder, as `load_pipeline` loads all of them.

    Raises:
        ValueError: As there.
    """
    _, places = _read_top(folder)
    expected = {name: tree for name, (tree, _) in abstract_pipeline(config, dtype).parts.items() if name in names}
    mesh = meshes.mesh_that_is_set()
    if mesh is not None:
        specs = transformer_spec(config.model)
        expected = {name: meshes.abstract_beside(tree, specs, mesh) for name, tree in expected.items()}
    made = {}
    for name, tree in expected.items():
        cut = cut_rows if name == TRANSFORMER and has_list(config) else None
        made[name] = weights.load_component(*places[name], tree, _view_of(name, config), cut)
    return {name: with_list(config, tree) if name == TRANSFORMER else tree for name, tree in made.items()}


def _view_of(name: str, config: PipelineConfig) -> Callable[[TensorFile], TensorFile]:
    """Return what is read of a component's file: a network may be quantised on the way."""
    return partial(quantising, config=config.model) if name == TRANSFORMER else lambda file: file


def locate_components(folder: AnyPath) -> dict[str, tuple[Path, str]]:
    """Return folder and name of each component, as `load_component` takes them. A component may be missing there.

    Raises:
        ValueError: In one line, if there is no such folder or its config is damaged.
    """
    return _read_top(folder)[1]


def read_top(folder: AnyPath | None) -> dict[str, Any]:
    """Read the top-level config of a weights folder; whether its `sampler` and `resolution` are right is not checked.

    Raises:
        ValueError: In one line, if there is no such folder, or its config is damaged, of another format, or has an
            unknown key or a value of a wrong type; names file and key.
    """
    folder = find_weights(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such weights folder")
    top, where = weights.read_config(folder), folder / weights.CONFIG
    if "format" not in top:
        raise ValueError(f"{where}: no format; not a weights folder")
    if unknown := sorted(set(top) - KEYS):
        raise ValueError(f"{where}: unknown keys {unknown}")
    is_ours = type(top["format"]) is int and top["format"] == FORMAT
    require(is_ours, f"{where}: format", top["format"], f"must be {FORMAT}")
    parse(str, top.get("name", ""), f"{where}: name")
    named = top.get("components", {})
    require(isinstance(named, dict), f"{where}: components", named, "must be an object of names and paths")
    if unknown := sorted(set(named) - set(COMPONENTS)):
        raise ValueError(f"{where}: unknown components {unknown}")
    for name, path in named.items():
        is_path = isinstance(path, str) and path != "" and "\0" not in path
        require(is_path, f"{where}: components.{name}", path, "must be a path relative to the folder")
    return top


def _read_top(folder: AnyPath | None) -> tuple[dict[str, Any], dict[str, tuple[Path, str]]]:
    """Read the top-level config. Also returns folder and name of every component."""
    folder = find_weights(folder)
    manifest.read(folder)
    top = read_top(folder)
    named = top.get("components", {})
    paths = {name: Path(os.path.normpath(folder / named.get(name, name))) for name in COMPONENTS}
    return top, {name: (path.parent, path.name) for name, path in paths.items()}


def _is_there(folder: Path, name: str) -> bool:
    """Whether a component can be read; one that passed through has neither of these files."""
    return any((folder / name / file).is_file() for file in (weights.MODEL, weights.CONFIG))


def _two_numbers(value: Any) -> tuple[int, int]:
    is_size = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    require(is_size, "resolution", value, "must be [height, width] in pixels")
    return value[0], value[1]
