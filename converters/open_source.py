"""Open a source of any format and list its components.

| path | format |
|---|---|
| a safetensors file, or shards with an index, whose header has a config | LTX-2, all components or some |
| the same without a config, or a `.pt` file | OmniForcing |
| a folder with `model_index.json`, or with a `config.json` that names a diffusers class | diffusers |
| a folder whose `config.json` has a Gemma 3 `model_type` | Hugging Face |
| a GGUF file | a transformer under original keys, or llama.cpp's Gemma 3 |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.strict_json import read_object
from omniforcing_jax.text.tokenizer import what_is_missing

from .component import DIFFUSERS, HUGGING_FACE, Component
from .formats import gemma, gemma_gguf
from .gguf_file import open_gguf
from .lazy_tensor import LazyTensor, list_tensors
from .lora.keys import is_lora
from .native_component import is_weights_folder
from .original_keys import LANDMARK, read_original_keys
from .overrides import Overrides, apply_overrides
from .registry import CLASSES, COMPONENTS, FOLDERS, GEMMA, find_table
from .source_component import SourceComponent
from .tensor_folder import open_folder
from .tokenizer_files import find_tokenizer
from .torch_checkpoint import open_torch_checkpoint

GGUF = ".gguf"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def list_components(path: Path, overrides: Overrides) -> list[SourceComponent]:
    """Open a source and list its components. Only headers and configs are read.

    Raises:
        ValueError: In one line: it is missing, damaged, of no known format, or contradicts itself; names file and key.
    """
    if path.is_dir():
        return _open_folder(path, overrides)
    if path.suffix in PICKLES:
        tensors, notes = open_torch_checkpoint(path, overrides.state)
        return read_original_keys(path, tensors, {}, overrides, notes)
    if path.suffix == GGUF:
        return _open_gguf(path, overrides)
    file = open_tensors(path)
    if is_lora(file.entries):
        raise ValueError(f"{path}: is a LoRA; fuse it into a network with --lora {path} STRENGTH")
    return read_original_keys(path, list_tensors(file), file.metadata, overrides)


def _open_folder(folder: Path, overrides: Overrides) -> list[SourceComponent]:
    if (folder / "model_index.json").is_file():
        return _open_pipeline(folder, overrides)
    if (folder / "config.json").is_file():
        config = read_object(folder / "config.json")
        if is_weights_folder(folder):
            raise ValueError(f"{folder}: is a weights folder already; `export` writes it in another format")
        if (name := CLASSES.get(str(config.get("_class_name")))) is not None:
            return [_open_model(folder, name, DIFFUSERS, config, overrides)]
        if str(config.get("model_type")).startswith(GEMMA):
            return [_open_model(folder, "text", HUGGING_FACE, config, overrides)]
        raise ValueError(f"{folder / 'config.json'}: has neither a class of diffusers' LTX-2 nor Gemma 3's model_type")
    tensors, metadata = open_folder(folder)
    return read_original_keys(folder, tensors, metadata, overrides)


def _open_pipeline(folder: Path, overrides: Overrides) -> list[SourceComponent]:
    """List the components of a diffusers pipeline; its scheduler and tokenizer have no weights and are left out."""
    sources = []
    for entry in sorted(path for path in folder.iterdir() if (path / "config.json").is_file()):
        config = read_object(entry / "config.json")
        if (name := FOLDERS.get(entry.name)) is None:
            raise ValueError(f"{entry}: is none of the components {', '.join(FOLDERS)}")
        naming = HUGGING_FACE if name == "text" else DIFFUSERS
        sources.append(_open_model(entry, name, naming, config, overrides))
    if not sources:
        raise ValueError(f"{folder}: has a model_index.json, but no component with a config.json")
    return sources


def _open_gguf(path: Path, overrides: Overrides) -> list[SourceComponent]:
    """Open a GGUF file: llama.cpp's of Gemma 3, or ComfyUI's of a transformer under its original keys."""
    file = open_gguf(path)
    kind = file.fields.get("general.architecture")
    if kind == gemma_gguf.ARCHITECTURE:
        values = gemma_gguf.read_config(file)
        naming = COMPONENTS["text"].namings[gemma.TEXT_ONLY]
        config = naming.table.read(values)
        keys = [each.source for each in COMPONENTS["text"].expand(config, gemma.TEXT_ONLY)]
        tensors = gemma_gguf.rename_tensors(file, keys, config.layers)
        return [_describe_model(path, "text", gemma.TEXT_ONLY, values, overrides, (tensors, {}), file.notes)]
    if not any(key.endswith(LANDMARK) for key in file.tensors):
        expected = f"a transformer of LTX-2 (with {LANDMARK}) or {gemma_gguf.ARCHITECTURE}"
        raise ValueError(f"{path}: general.architecture={kind!r}: expected {expected}")
    metadata = {key: value for key, value in file.fields.items() if key == "config" and isinstance(value, str)}
    return read_original_keys(path, file.tensors, metadata, overrides, file.notes)


def _open_model(
    folder: Path, name: str, naming: str, values: Mapping[str, Any], overrides: Overrides
) -> SourceComponent:
    """Open a folder that is one component."""
    content = open_folder(folder)
    naming = gemma.find_naming(content[0], str(folder)) if name == "text" else naming
    return _describe_model(folder, name, naming, values, overrides, content)


def _describe_model(
    path: Path,
    name: str,
    naming: str,
    values: Mapping[str, Any],
    overrides: Overrides,
    content: tuple[Mapping[str, LazyTensor], Mapping[str, str]],
    notes: tuple[str, ...] = (),
) -> SourceComponent:
    """Describe one component that has a config of its own; `content` is its tensors and its metadata."""
    component = find_table(name, naming)
    try:
        config, changes = _read_config(component, naming, values, overrides)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json' if path.is_dir() else path}: {error}") from None
    files = find_tokenizer(path if path.is_dir() else path.parent) if name == "text" else ()
    lacking = what_is_missing([Path(file).name for file in files]) if name == "text" else None
    return SourceComponent(
        name=name,
        format="diffusers" if naming == DIFFUSERS else "Hugging Face",
        naming=naming,
        where=str(path),
        tensors=content[0],
        component=component,
        config=config,
        metadata=content[1],
        model_config=values,
        notes=(*notes, *changes, *(() if lacking is None else (f"no prompt can be read: {lacking}",))),
        files=files,
    )


def _read_config(
    component: Component | None, naming: str, values: Mapping[str, Any], overrides: Overrides
) -> tuple[Any, tuple[str, ...]]:
    if component is None:
        return None, ()
    config = component.namings[naming].table.read(values)
    return apply_overrides(config, overrides) if isinstance(config, ModelConfig) else (config, ())
