"""Open a source of any format and list its components.

| path | format |
|---|---|
| a safetensors file, or shards with an index, under LTX-2's keys | LTX-2, all components or some; OmniForcing |
| a `.pt` file | OmniForcing, or a trainer's LTX-2 |
| a safetensors file with Gemma's keys | ComfyUI's or ltx-core's single-file text encoder |
| a safetensors file with an upsampler's keys | LTX-2's latent upsampler |
| a folder with `model_index.json`, or with a `config.json` that names a diffusers class | diffusers |
| a folder whose `config.json` has a `model_type` of Gemma 3 or 4 | Hugging Face |
| a GGUF file | a transformer under original keys, or llama.cpp's Gemma 3 |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniforcing_jax.codecs.upsampler_config import UpsamplerConfig
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.foreign_file import require_file
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import read_object
from omniforcing_jax.text.tokenizer import what_is_missing

from .component import DIFFUSERS, HUGGING_FACE, Component
from .float8 import dequantise
from .formats import gemma, upsampler
from .lazy_tensor import LazyTensor, list_tensors
from .lora.keys import is_lora
from .native_component import is_weights_folder
from .open_gguf import open_gguf
from .original_keys import read_original_keys
from .overrides import Overrides, apply_overrides
from .registry import CLASSES, FOLDERS, GEMMA, find_table
from .single_file_gemma import take_text_model
from .source_component import SourceComponent
from .tensor_folder import is_shard, name_contents, open_folder
from .tokenizer_files import find_tokenizer
from .torch_checkpoint import PICKLES, TorchCheckpoint, open_torch_checkpoint
from .upsampler_file import take_upsampler

GGUF = ".gguf"
IN_A_FOLDER = (  # keys that only diffusers has, one for each kind of component
    "latents_mean",
    "time_embed.emb.timestep_embedder.linear_1.weight",
    "video_connector.learnable_registers",
    "upsamplers.0.weight",
)
STRANGERS = {  # a key that tells a file which has no component of ours: what it is, and what to do
    **dict.fromkeys(IN_A_FOLDER, "has diffusers' keys; name the component's folder, whose config.json is needed"),
}


def list_components(path: Path, overrides: Overrides) -> list[SourceComponent]:
    """Open a source and list its components. Only headers and configs are read.

    A component whose file has no config has none here: see missing_config.py.

    Raises:
        ValueError: In one line: it is missing, damaged, of no known format, or contradicts itself; names file and key.
    """
    if path.is_dir():
        return _open_folder(path, overrides)
    require_file(path)
    if path.suffix in PICKLES:
        checkpoint = open_torch_checkpoint(path, overrides.state)
        return _read_tensors(path, checkpoint.tensors, {}, overrides, checkpoint)
    if path.suffix == GGUF:
        return open_gguf(path, overrides)
    if path.name.endswith((".index.json", ".distcp")):
        raise ValueError(f"{path}: is a part of a checkpoint; name its folder, {path.parent}")
    file = open_tensors(path)
    return _read_tensors(path, list_tensors(file), file.metadata, overrides)


def _read_tensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    overrides: Overrides,
    checkpoint: TorchCheckpoint | None = None,
) -> list[SourceComponent]:
    """List the components of tensors that have no config.json: a text model, and what is under original keys."""
    notes, has_generator = ((), False) if checkpoint is None else ((checkpoint.note,), checkpoint.has_generator)
    _refuse_strangers(path, tensors)
    tensors, scales = dequantise(tensors, metadata)
    notes += scales
    if (found := take_upsampler(path, tensors, metadata)) is not None:
        return [dataclasses.replace(found, notes=notes + found.notes)]
    text, others = take_text_model(path, tensors, metadata)
    sources = [] if text is None else [dataclasses.replace(text, notes=notes + text.notes)]
    if others or text is None:
        sources += read_original_keys(path, others, metadata, overrides, notes, has_generator=has_generator)
    return sources


def _refuse_strangers(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse files that are told by a key, and shards without their folder."""
    if is_lora(tensors):
        raise ValueError(f"{path}: is a LoRA; fuse it into a network with --lora {path} STRENGTH")
    for key, what in STRANGERS.items():
        if key in tensors:
            raise ValueError(f"{path}: {what}")
    if is_shard(path.with_suffix(".safetensors").name):
        raise ValueError(f"{path}: is one of several shards; name their folder, {path.parent}")


def _open_folder(folder: Path, overrides: Overrides) -> list[SourceComponent]:
    if (folder / "model_index.json").exists():
        return _open_pipeline(folder, overrides)
    if (folder / "config.json").exists():
        config = read_object(folder / "config.json")
        if is_weights_folder(folder):
            raise ValueError(f"{folder}: is a weights folder already; `export` writes it in another format")
        if (name := CLASSES.get(str(config.get("_class_name")))) is not None:
            return [_open_model(folder, name, DIFFUSERS, config, overrides)]
        if str(config.get("model_type")).startswith(GEMMA):
            return [_open_model(folder, "text", HUGGING_FACE, config, overrides)]
        if (what := name_contents(folder)) is not None:
            raise ValueError(f"{folder}: {what}")
        raise ValueError(
            f"{folder / 'config.json'}: has neither a class of diffusers' LTX-2 nor a model_type of Gemma's"
        )
    tensors, metadata = open_folder(folder)
    return _read_tensors(folder, tensors, metadata, overrides)


def _open_pipeline(folder: Path, overrides: Overrides) -> list[SourceComponent]:
    """List the components of a diffusers pipeline; those that nothing here uses are named in a note."""
    sources, passed_by = [], []
    for entry in sorted(path for path in folder.iterdir() if (path / "config.json").exists()):
        config = read_object(entry / "config.json")
        if (name := FOLDERS.get(entry.name)) is None:
            passed_by.append(f"{entry.name} ({config.get('_class_name') or config.get('model_type')})")
            continue
        naming = HUGGING_FACE if name == "text" else DIFFUSERS
        sources.append(_open_model(entry, name, naming, config, overrides))
    if not sources:
        raise ValueError(f"{folder}: has a model_index.json, but none of {', '.join(FOLDERS)} with a config.json")
    if passed_by:
        note = f"passed by, nothing here uses it: {', '.join(passed_by)}"
        sources[0] = dataclasses.replace(sources[0], notes=(*sources[0].notes, note))
    return sources


def _open_model(
    folder: Path, name: str, naming: str, values: Mapping[str, Any], overrides: Overrides
) -> SourceComponent:
    """Open a folder that is one component."""
    tensors, metadata = open_folder(folder)
    if name == "text":
        naming = gemma.find_naming(tensors, str(folder))
    component = find_table(name, naming)
    try:
        config, notes = _read_config(component, naming, values, overrides)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    if isinstance(config, UpsamplerConfig):
        component = find_table(name := upsampler.name_of(config), naming)
    files = find_tokenizer(folder) if name == "text" else ()
    lacking = what_is_missing([Path(file).name for file in files]) if name == "text" else None
    return SourceComponent(
        name=name,
        format="diffusers" if naming == DIFFUSERS else "Hugging Face",
        naming=naming,
        where=str(folder),
        tensors=tensors,
        component=component,
        config=config,
        metadata=metadata,
        model_config=values,
        notes=notes if lacking is None else (*notes, f"no prompt can be read: {lacking}"),
        files=files,
    )


def _read_config(
    component: Component | None, naming: str, values: Mapping[str, Any], overrides: Overrides
) -> tuple[Any, tuple[str, ...]]:
    if component is None:
        return None, ()
    config = component.namings[naming].table.read(values)
    return apply_overrides(config, overrides) if isinstance(config, ModelConfig) else (config, ())
