"""Which files of a repository are needed: one checkpoint, one model's folder, or a pipeline of diffusers.

Only names decide here; nothing is downloaded. Where several checkpoints fit, the choice is asked for.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..lora.scale import BESIDE
from ..registry import FOLDERS
from ..tensor_folder import INDEX, SHARD, is_shard
from ..tokenizer_files import TOKENIZERS

WEIGHTS = (".safetensors", ".gguf", ".pt", ".pth", ".ckpt")
PIPELINE, CONFIG = "model_index.json", "config.json"
OTHERS = re.compile(r"lora|upscaler|upsampler|mmproj", re.IGNORECASE)  # names of files that are no checkpoint
CANONICAL = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is taken from a repository.

    Attributes:
        root: The file or folder to open, relative to the repository; "" for the whole.
        files: The files that are needed.
    """

    root: str
    files: tuple[str, ...]


def choose(where: str, sizes: Mapping[str, int | None], wanted: str | None, is_lora: bool = False) -> Choice:
    """Choose the files of a checkpoint.

    Args:
        where: The repository, for messages.
        sizes: All its files, with bytes where known.
        wanted: File or folder in it; None for the only one that fits.
        is_lora: A LoRA is looked for.

    Raises:
        ValueError: There is no such file, none that fits, or more than one; lists them.
    """
    if wanted is not None:
        return _choose_by_name(where, sizes, wanted.strip("/"))
    found = list(_list_loras(sizes) if is_lora else _list_checkpoints(where, sizes))
    if len(found) == 1:
        return _choose_by_name(where, sizes, found[0])
    if not found:
        raise ValueError(
            f"{where}: has no {'LoRA' if is_lora else 'checkpoint'} that can be read; it has {_list(sizes)}"
        )
    options = ", ".join(f"{where}:{name}{_size_of(sizes.get(name))}" for name in found)
    raise ValueError(f"{where}: {len(found)} checkpoints fit, name one: {options}")


def _choose_by_name(where: str, sizes: Mapping[str, int | None], wanted: str) -> Choice:
    path = PurePosixPath(wanted)
    if wanted in sizes:
        folder = "" if path.parent == PurePosixPath(".") else str(path.parent)
        if path.name == PIPELINE:
            return Choice(root=folder, files=tuple(_list_pipeline(where, sizes, folder)))
        if path.name == CONFIG or path.name.endswith(INDEX):
            return Choice(root=folder, files=tuple(_list_model(where, sizes, folder)))
        beside = str(path.with_name(BESIDE))  # PEFT's scale
        return Choice(root=wanted, files=(wanted, *((beside,) if beside in sizes else ())))
    if any(name.startswith(f"{wanted}/") for name in sizes):
        if f"{wanted}/{PIPELINE}" in sizes:
            return _choose_by_name(where, sizes, f"{wanted}/{PIPELINE}")
        return Choice(root=wanted, files=tuple(_list_model(where, sizes, wanted)))
    near = difflib.get_close_matches(wanted, sizes, 3, 0.5)
    raise ValueError(f"{where}: has no {wanted}; {'near are' if near else 'it has'} {', '.join(near) or _list(sizes)}")


def _list_checkpoints(where: str, names: Collection[str]) -> Iterator[str]:
    """List what a user may mean by a repository's name: files that stand for a folder or for themselves."""
    top = [name for name in names if "/" not in name]
    indices = [name for name in top if name.endswith(INDEX)]
    if PIPELINE in top:
        yield PIPELINE
    shards = {name for name in top if is_shard(name, bool(indices))}
    whole = [name for name in top if name.endswith(WEIGHTS) and name not in shards and not OTHERS.search(name)]
    if CONFIG in top and PIPELINE not in top and (indices or whole):
        yield CONFIG
        others = [name for name in whole if not SHARD.fullmatch(name)]  # a lone shard is the config's
        yield from (name for name in others if PurePosixPath(name).stem not in CANONICAL)
        return
    yield from indices
    yield from whole


def _list_loras(names: Collection[str]) -> Iterator[str]:
    yield from (name for name in names if "/" not in name and name.endswith(".safetensors"))


def _list_pipeline(where: str, names: Collection[str], folder: str) -> Iterator[str]:
    """List the files of a pipeline's components, upsamplers too; schedulers and the like are left out."""
    before = f"{folder}/" if folder else ""
    yield f"{before}{PIPELINE}"
    for part in FOLDERS:
        if f"{before}{part}/{CONFIG}" in names:
            yield from _list_model(where, names, f"{before}{part}")
    yield from (name for name in names if name in {f"{before}tokenizer/{file}" for file in TOKENIZERS})


def _list_model(where: str, names: Collection[str], folder: str) -> Iterator[str]:
    """List config, weights and tokenizer of one model's folder."""
    here = {PurePosixPath(name).name: name for name in names if str(PurePosixPath(name).parent) == (folder or ".")}
    indices = [name for name in here if name.endswith(INDEX)]
    whole = [name for name in here if name.endswith(".safetensors") and not is_shard(name, bool(indices))]
    stem = _find_stem([name.removesuffix(INDEX) for name in indices] or [PurePosixPath(name).stem for name in whole])
    if stem is None:
        told = ", ".join(sorted(indices or whole)) or "none"
        raise ValueError(f"{where}: {folder or 'it'} must have one set of safetensors files to read, it has {told}")
    yield from (name for name in (here.get(CONFIG), here.get(f"{stem}{INDEX}")) if name is not None)
    for name, full in here.items():
        found = SHARD.fullmatch(name)
        if (found[1] == stem) if indices and found else (not indices and name == f"{stem}.safetensors"):
            yield full
    yield from (here[name] for name in TOKENIZERS if name in here)


def _find_stem(stems: list[str]) -> str | None:
    """Return the only set of weights, or the one that libraries take by default."""
    if len(stems) == 1:
        return stems[0]
    return next((stem for stem in CANONICAL if stem in stems), None)


def _list(names: Collection[str]) -> str:
    shown = sorted(names)[:12]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "") or "no files"


def _size_of(nbytes: int | None) -> str:
    return "" if nbytes is None else f" ({nbytes / 1e9:.2f} GB)"
