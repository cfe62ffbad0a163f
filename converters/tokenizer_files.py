"""The files of a tokenizer, which go along with a text model."""

from pathlib import Path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def find_tokenizer(folder: Path) -> tuple[str, ...]:
    """List the tokenizer's files in a text model's folder, or in the folder `tokenizer` beside it."""
    folders = (folder, folder.parent / "tokenizer")
    return tuple(str(each / file) for file in TOKENIZERS for each in folders if (each / file).is_file())
