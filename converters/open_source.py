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
from .formats import gemma
from .lazy_tensor import list_tensors
from .lora.keys import is_lora
from .native_component import is_weights_folder
from .open_gguf import open_gguf
from .original_keys import read_original_keys
from .overrides import Overrides, apply_overrides
from .registry import CLASSES, FOLDERS, GEMMA, find_table
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
        return open_gguf(path, overrides)
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
