"""What a path is, and which components it has: the one place that knows every format.

| path | format |
|---|---|
| a safetensors file, or shards with an index, whose header has a config | LTX-2, all components or some |
| the same without a config, or a `.pt` file | OmniForcing |
| a folder with `model_index.json`, or with a `config.json` that names a class of diffusers | diffusers |
| a folder whose `config.json` has a Gemma 3 `model_type` | Hugging Face |
"""

from pathlib import Path
from typing import Any

from converters import gemma
from converters.checkpoint import read_checkpoint
from converters.choices import Choices, override
from converters.component import DIFFUSERS, HUGGING_FACE
from converters.files import open_folder, read_json_object
from converters.part import Part
from converters.pickled import open_pickle
from converters.piece import pieces_of
from converters.registry import CLASSES, FOLDERS, GEMMA, find_table
from omniforcing_jax.config import ModelConfig
from omniforcing_jax.io.tensor_file import open_tensors
from omniforcing_jax.text.tokenizer import what_is_missing

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def find_parts(path: Path, choices: Choices) -> list[Part]:
    """Open a source and list its components, reading headers and configs only.

    Raises:
        ValueError: In one line: it is missing, damaged, of no known format, or contradicts itself; names file and key.
    """
    if path.is_dir():
        return _find_in_folder(path, choices)
    if path.suffix in PICKLES:
        tensors, notes = open_pickle(path, choices.state)
        return read_checkpoint(path, tensors, {}, choices, notes)
    file = open_tensors(path)
    if any(".lora_A." in key for key in file.entries):
        raise ValueError(f"{path}: is a LoRA; fuse it into a network with --lora {path} STRENGTH")
    return read_checkpoint(path, pieces_of(file), file.metadata, choices)


def _find_in_folder(folder: Path, choices: Choices) -> list[Part]:
    if (folder / "model_index.json").is_file():
        return _find_in_pipeline(folder, choices)
    if (folder / "config.json").is_file():
        config = read_json_object(folder / "config.json")
        if "format" in config and "components" not in config and "_class_name" not in config:
            raise ValueError(f"{folder}: is a weights folder of ours; `export` reads those")
        if (name := CLASSES.get(str(config.get("_class_name")))) is not None:
            return [_read_model(folder, name, DIFFUSERS, config, choices)]
        if str(config.get("model_type")).startswith(GEMMA):
            return [_read_model(folder, "text", HUGGING_FACE, config, choices)]
        raise ValueError(f"{folder / 'config.json'}: neither a class of diffusers' LTX-2 nor Gemma 3")
    tensors, metadata = open_folder(folder)
    return read_checkpoint(folder, tensors, metadata, choices)


def _find_in_pipeline(folder: Path, choices: Choices) -> list[Part]:
    """List the components of a diffusers pipeline; its scheduler and others without weights are left."""
    parts = []
    for entry in sorted(path for path in folder.iterdir() if (path / "config.json").is_file()):
        config = read_json_object(entry / "config.json")
        if (name := FOLDERS.get(entry.name)) is None:
            raise ValueError(f"{entry}: a component that is none of {', '.join(FOLDERS)}")
        parts.append(_read_model(entry, name, HUGGING_FACE if name == "text" else DIFFUSERS, config, choices))
    if not parts:
        raise ValueError(f"{folder}: model_index.json, but no component with a config.json")
    return parts


def _read_model(folder: Path, name: str, naming: str, values: dict[str, Any], choices: Choices) -> Part:
    """Read a folder that is one component."""
    tensors, metadata = open_folder(folder)
    if name == "text":
        naming = gemma.find_naming(tensors, str(folder))
    component, config, notes = find_table(name, naming), None, ()
    if component is not None:
        try:
            config = component.namings[naming].read_config(values)
            if isinstance(config, ModelConfig):
                config, notes = override(config, choices)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
    beside = (folder, folder.parent / "tokenizer")
    files = [str(place / file) for file in TOKENIZERS for place in beside if (place / file).is_file()]
    lacking = what_is_missing([Path(file).name for file in files]) if name == "text" else None
    return Part(
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
        files=tuple(files) if name == "text" else (),
    )
