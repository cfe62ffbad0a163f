"""Open a GGUF file: ComfyUI's of a transformer under its original keys, or llama.cpp's of Gemma 3."""

from pathlib import Path

from omniforcing_jax.text.tokenizer import what_is_missing

from .formats import gemma, gemma_gguf
from .gguf_file import GgufFile, read_gguf
from .original_keys import read_original_keys
from .overrides import Overrides
from .source_component import SourceComponent
from .text_version import MADE_FOR
from .tokenizer_files import find_tokenizer

HEADER = ("config", MADE_FOR)  # fields that a converter may have kept of the checkpoint's header
PATCHIFY = "patchify_proj.weight"  # how a key of every transformer of LTX ends


def open_gguf(path: Path, overrides: Overrides) -> list[SourceComponent]:
    """List the components of a GGUF file. Only its header is read.

    Raises:
        ValueError: It is damaged, or of another network; names the file.
    """
    file = read_gguf(path)
    kind = file.fields.get("general.architecture")
    if kind == gemma_gguf.ARCHITECTURE:
        return [_open_gemma(file)]
    if not any(key.endswith(PATCHIFY) for key in file.tensors):
        expected = f"a transformer of LTX-2 (with {PATCHIFY}) or {gemma_gguf.ARCHITECTURE}"
        raise ValueError(f"{path}: general.architecture={kind!r}: expected {expected}")
    metadata = {key: value for key, value in file.fields.items() if key in HEADER and isinstance(value, str)}
    return read_original_keys(path, file.tensors, metadata, overrides, file.notes)


def _open_gemma(file: GgufFile) -> SourceComponent:
    values, naming = gemma_gguf.read_config(file), gemma.COMPONENT.namings[gemma.TEXT_ONLY]
    try:
        config = naming.table.read(values)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    keys = [each.source for each in gemma.COMPONENT.expand(config, gemma.TEXT_ONLY)]
    files = find_tokenizer(file.path.parent)
    lacking = what_is_missing([Path(each).name for each in files])
    return SourceComponent(
        name="text",
        format="GGUF",
        naming=gemma.TEXT_ONLY,
        where=str(file.path),
        tensors=gemma_gguf.rename_tensors(file, keys, config.layers),
        component=gemma.COMPONENT,
        config=config,
        model_config=values,
        notes=file.notes if lacking is None else (*file.notes, f"no prompt can be read: {lacking}"),
        files=files,
    )
