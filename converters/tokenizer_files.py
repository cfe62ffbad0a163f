"""The files of a tokenizer, which go along with a text model."""

from pathlib import Path

from omniforcing_jax.io.foreign_file import HEAD, name_foreign
from omniforcing_jax.text.tokenizer import FILE

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def find_tokenizer(folder: Path) -> tuple[str, ...]:
    """List the tokenizer's files in a text model's folder, or in the folder `tokenizer` beside it.

    The model's own folder comes first, unless only the other one has a tokenizer that can be read.

    Raises:
        ValueError: One of them is a note in the place of a file; names it.
    """
    own, beside = (
        [each / file for file in TOKENIZERS if (each / file).is_file()]
        for each in (folder, folder.parent / "tokenizer")
    )
    found = next((files for files in (own, beside) if any(path.name == FILE for path in files)), own or beside)
    for path in found:
        with path.open("rb") as file:
            if (what := name_foreign(file.read(HEAD))) is not None:
                raise ValueError(f"{path}: {what}")
    return tuple(map(str, found))
